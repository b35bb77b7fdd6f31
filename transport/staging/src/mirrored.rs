//! What a disk process says of a request that it mirrored: a backup's own image was changed as the guest asked, and
//! nothing of that enters the guest. It travels in the place of a completion's bytes.
//!
//! Staged by a disk process whose mode is `Quiet`, read by the VMM of a backup. It knows nothing of disks.

use crate::limits::REASON_BYTES_MAX;

/// How a request ended on a backup's own image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mirrored {
    /// There was nothing to change: the request only asks, or is malformed.
    Nothing,
    /// The image has it.
    Done,
    /// The image does not have it, or not all of it; why not.
    Failed(String),
}

const DONE: u8 = 0;
const FAILED: u8 = 1;

impl Mirrored {
    /// As bytes; a reason that is too long is cut.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Done => vec![DONE],
            Self::Failed(why) => {
                let why = &why[..why.floor_char_boundary(REASON_BYTES_MAX)];
                [&[FAILED], why.as_bytes()].concat()
            }
        }
    }

    /// From bytes; `None` when they make no sense.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [] => Some(Self::Nothing),
            [DONE] => Some(Self::Done),
            [FAILED, why @ ..] if why.len() <= REASON_BYTES_MAX => {
                let why = String::from_utf8_lossy(why);
                Some(Self::Failed(why.chars().filter(|c| !c.is_control()).collect()))
            }
            _ => None,
        }
    }
}

/// The longest answer, so that room can be asked for before a request is begun.
pub const MIRRORED_BYTES_MAX: usize = 1 + REASON_BYTES_MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_what_is_heard() {
        let failed = Mirrored::Failed("No space left on device".to_owned());
        for word in [Mirrored::Nothing, Mirrored::Done, failed] {
            assert_eq!(Mirrored::from_bytes(&word.to_bytes()), Some(word));
        }
    }

    #[test]
    fn an_endless_reason_is_cut_at_a_character_and_nonsense_is_nothing() {
        let bytes = Mirrored::Failed("\u{e9}".repeat(500)).to_bytes();
        assert_eq!(bytes.len(), MIRRORED_BYTES_MAX);
        assert_eq!(Mirrored::from_bytes(&[9]), None);
        assert_eq!(Mirrored::from_bytes(&[0, 0]), None);
    }
}
