//! What hosts say of their own images of a mirrored disk, and what to do when the images differ.
//!
//! Part of the hello. The edge computes the digest and asks the arbiter who ran last; here it is only compared.

use std::fmt;

use super::{Digest, Hello, Refusal};
use crate::ids::NodeName;

/// A host's own image of a mirrored disk, before the guest runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Image {
    /// Over everything that it holds.
    pub digest: Digest,
    /// Who held the last term, as the arbiter told the speaker: nobody's image is newer.
    pub last_holder: Option<NodeName>,
}

/// Two hosts have different images.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "Host {us} and host {them} have different disk images ({} and {}): {advice}",
    Shown(*ours),
    Shown(*theirs)
)]
pub struct ImagesDiffer {
    us: NodeName,
    them: NodeName,
    ours: Option<Digest>,
    theirs: Option<Digest>,
    /// What to do.
    pub advice: CopyAdvice,
}

/// The digest of an image in a sentence, if there is an image.
struct Shown(Option<Digest>);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(digest) => digest.fmt(f),
            None => f.write_str("none"),
        }
    }
}

/// Which image is to be copied where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyAdvice {
    /// This host ran the VM last; the other one's image is old.
    From(NodeName, NodeName),
    /// A host that is neither of the two ran it last.
    Stranger(NodeName),
    /// Nobody has run it yet.
    Any,
}

impl CopyAdvice {
    fn new(last_holder: Option<&NodeName>, us: &NodeName, them: &NodeName) -> Self {
        match last_holder {
            Some(holder) if holder == us => Self::From(us.clone(), them.clone()),
            Some(holder) if holder == them => Self::From(them.clone(), us.clone()),
            Some(holder) => Self::Stranger(holder.clone()),
            None => Self::Any,
        }
    }
}

impl fmt::Display for CopyAdvice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From(newest, old) => write!(
                f,
                "host {newest} held the last term and has the newer one; copy it over the one on host {old} while \
                 neither runs, then start both again"
            ),
            Self::Stranger(holder) => write!(
                f,
                "host {holder}, which is neither of them, held the last term; copy its image over both, then start both \
                 again"
            ),
            Self::Any => f.write_str(
                "no host has run this VM yet; copy the one you want over the other one, then start both again",
            ),
        }
    }
}

/// Do both hosts have the same image, or none each? Asked before the devices are compared: images of different lengths
/// make different devices, and the remedy is to copy one.
pub(super) fn check(ours: &Hello, theirs: &Hello) -> Option<Refusal> {
    let digest = |hello: &Hello| hello.image.as_ref().map(|image| image.digest);
    if digest(ours) == digest(theirs) {
        return None;
    }
    let mut images = [&ours.image, &theirs.image].into_iter().flatten();
    let last_holder = images.find_map(|image| image.last_holder.as_ref());
    Some(Refusal::Images(Box::new(ImagesDiffer {
        us: ours.node.clone(),
        them: theirs.node.clone(),
        ours: digest(ours),
        theirs: digest(theirs),
        advice: CopyAdvice::new(last_holder, &ours.node, &theirs.node),
    })))
}
