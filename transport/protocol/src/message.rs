//! What peers say to each other besides the log: hello, refusal, ack, heartbeat, goodbye. Their meaning is
//! here, their bytes are in `codec`. The machines make and judge them; nothing here sends anything.

mod image;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{LogOffset, NodeName, Position, Term};
use crate::limits::MAX_SENTENCE;
use crate::session::{Parting, Timing};
use crate::time::Instant;

pub use image::{CopyAdvice, Image, ImagesDiffer};

/// Everything that is said on a control, ack or heartbeat stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// The first word of each side, on the control stream.
    Hello(Box<Hello>),
    /// A hello of another protocol version: only what every version has in common can be read.
    Foreign(Foreign),
    /// The speaker wants no session; the sentence says why.
    Refused(Sentence),
    /// The speaker leaves for good.
    Goodbye(Parting),
    /// How far the backup holds and has executed the log.
    Ack(Ack),
    /// The speaker lives.
    Heartbeat(Heartbeat),
    /// The backup's machine is not the primary's any more.
    Diverged(Diverged),
    /// What its memory comes to, in pieces.
    Census(Census),
}

/// The backup's machine is not the primary's any more. It acks nothing and claims nothing until a delta has healed it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Diverged {
    /// Of which term.
    pub term: Term,
    /// Where it was found.
    pub position: Position,
    /// What was found.
    pub what: Sentence,
}

/// A piece of what a diverged backup's memory comes to: a hash for each page, from one on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Census {
    /// Of which term.
    pub term: Term,
    /// The number of the first page.
    pub first: u64,
    /// No more pieces come.
    pub is_last: bool,
    /// Hashes of the pages.
    pub hashes: Vec<u64>,
}

/// Which part a host plays in a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Talks to the outside.
    Primary,
    /// Executes the same inputs and says nothing.
    Backup,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Backup => "backup",
        })
    }
}

/// A digest over something that must be equal on both hosts. The edge computes it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Wraps the output of a 256-bit hash.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for the wire.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    /// The first 8 digits: enough to see which of two files somebody has.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The first word of each side. Version, release and node come first in every version of the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hello {
    /// The protocol version: `limits::PROTOCOL_VERSION`.
    pub version: u16,
    /// The release of the program, at most `limits::MAX_RELEASE` bytes.
    pub release: String,
    /// Who speaks.
    pub node: NodeName,
    /// The part the speaker plays.
    pub role: Role,
    /// The term of the session.
    pub term: Term,
    /// Where the log of the session begins.
    pub start: LogOffset,
    /// Over the configuration, the parts that differ between hosts left out.
    pub config: Digest,
    /// Over the CPU template as this host can offer it.
    pub template: Digest,
    /// Over the devices and their features.
    pub devices: Digest,
    /// What this host's own image of a mirrored disk holds; absent where the hosts share the disk, or have none.
    pub image: Option<Image>,
    /// The pair's timing.
    pub timing: Timing,
}

impl Hello {
    /// What a host says that has nothing but a name and a part, for tests and measuring tools: the first term, the default
    /// timing, digests of nothing.
    pub fn bare(node: NodeName, role: Role) -> Self {
        let nothing = Digest::new([0; 32]);
        Self {
            version: crate::limits::PROTOCOL_VERSION,
            release: env!("CARGO_PKG_VERSION").into(),
            node,
            role,
            term: Term::new(1),
            start: LogOffset::ZERO,
            config: nothing,
            template: nothing,
            devices: nothing,
            image: None,
            timing: Timing::default(),
        }
    }
}

/// A hello of another protocol version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Foreign {
    /// Its protocol version.
    pub version: u16,
    /// Its release.
    pub release: String,
    /// Who speaks.
    pub node: NodeName,
}

/// Why two hosts are no pair. The sentences name hosts, so that they read alike on both.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// They speak different protocols.
    #[error(
        "Host {0} runs release {1} (protocol version {2}) and host {3} runs release {4} (protocol version {5}): \
         install the same version on both"
    )]
    Version(NodeName, String, u16, NodeName, String, u16),
    /// They are different programs, and may execute a guest differently.
    #[error("Host {0} runs release {1} and host {2} runs release {3}: install the same version on both")]
    Release(NodeName, String, NodeName, String),
    /// A host was paired with itself.
    #[error("Both hosts call themselves {0}: start each with its own --node")]
    SameNode(NodeName),
    /// Both want the same part.
    #[error("Host {0} and host {1} both want to be the {2}: start one as primary and one as backup")]
    SameRole(NodeName, NodeName, Role),
    /// They live in different terms.
    #[error("Host {0} is in term {1} and host {2} is in term {3}: start the one that was left behind again")]
    Term(NodeName, Term, NodeName, Term),
    /// Their logs begin at different places.
    #[error("The log of host {0} begins at {1} and that of host {2} at {3}: start both again")]
    Start(NodeName, LogOffset, NodeName, LogOffset),
    /// Their configurations differ.
    #[error("Host {0} and host {1} have different configurations ({2} and {3}): use the same file on both")]
    Config(NodeName, NodeName, Digest, Digest),
    /// Their processors differ in what they can offer to the guest.
    #[error(
        "Host {0} and host {1} offer different CPU templates ({2} and {3}): a guest would not run the same on both"
    )]
    Template(NodeName, NodeName, Digest, Digest),
    /// Their devices differ in kind, order or features.
    #[error("Host {0} and host {1} have different devices or device features ({2} and {3})")]
    Devices(NodeName, NodeName, Digest, Digest),
    /// Each has its own image of the disk, and the images differ.
    #[error(transparent)]
    Images(Box<ImagesDiffer>),
    /// Their timings differ.
    #[error("Host {0} and host {1} have different heartbeat, time-out or lease: use the same file on both")]
    Timing(NodeName, NodeName),
}

impl Hello {
    /// Are the two speakers a pair? Both sides ask this, and both refuse when it is not so (I9).
    pub fn check(ours: &Self, theirs: &Self) -> Result<(), Refusal> {
        let (us, them) = (ours.node.clone(), theirs.node.clone());
        if ours.version != theirs.version {
            return Err(ours.refuse_foreign(&Foreign {
                version: theirs.version,
                release: theirs.release.clone(),
                node: them,
            }));
        }
        if ours.release != theirs.release {
            return Err(Refusal::Release(
                us,
                ours.release.clone(),
                them,
                theirs.release.clone(),
            ));
        }
        if us == them {
            return Err(Refusal::SameNode(us));
        }
        if ours.role == theirs.role {
            return Err(Refusal::SameRole(us, them, ours.role));
        }
        if ours.config != theirs.config {
            return Err(Refusal::Config(us, them, ours.config, theirs.config));
        }
        if ours.template != theirs.template {
            return Err(Refusal::Template(us, them, ours.template, theirs.template));
        }
        if let Some(refusal) = image::check(ours, theirs) {
            return Err(refusal);
        }
        if ours.devices != theirs.devices {
            return Err(Refusal::Devices(us, them, ours.devices, theirs.devices));
        }
        if ours.timing != theirs.timing {
            return Err(Refusal::Timing(us, them));
        }
        if ours.term != theirs.term {
            return Err(Refusal::Term(us, ours.term, them, theirs.term));
        }
        if ours.start != theirs.start {
            return Err(Refusal::Start(us, ours.start, them, theirs.start));
        }
        Ok(())
    }

    /// The refusal of a speaker of another protocol version.
    pub fn refuse_foreign(&self, theirs: &Foreign) -> Refusal {
        Refusal::Version(
            self.node.clone(),
            self.release.clone(),
            self.version,
            theirs.node.clone(),
            theirs.release.clone(),
            theirs.version,
        )
    }
}

/// One printable line of bounded length, safe to show to an operator although a peer wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sentence(String);

impl Sentence {
    /// Makes text fit: control characters become blanks, what is too long is cut off.
    pub fn new(text: &str) -> Self {
        let mut line = String::new();
        for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
            if line.len() + c.len_utf8() > MAX_SENTENCE {
                break;
            }
            line.push(c);
        }
        Self(line)
    }

    /// The line.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Sentence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The backup's word that it holds every record before `upto`, and how far it has come with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ack {
    /// The term of the log.
    pub term: Term,
    /// Every record before this is held.
    pub upto: LogOffset,
    /// Every record before this has been applied.
    pub executed: LogOffset,
    /// Where the backup's VM is.
    pub position: Position,
}

/// The speaker lives. Times are of the primary's clock; the backup only gives them back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Heartbeat {
    /// The speaker's term.
    pub term: Term,
    /// When it was sent, on the speaker's clock.
    pub sent_at: Instant,
    /// The `sent_at` of the heartbeat that this one answers.
    pub echo: Option<Instant>,
}

#[cfg(test)]
mod tests;
