//! What a machine is, apart from its memory: the vCPUs, the board, its clock, the devices with their rings, and where it
//! stands.
//!
//! A machine gives it in a window ([`Machine::capture`]) and another is made from it ([`Machine::restore`]); between the
//! two it is bytes, for a peer or a snapshot file. Memory travels beside it, page by page ([`dirty`]), and in a file both are together ([`snapshot`]). Hosts of different
//! releases refuse each other, so the format has a version and no history.
//!
//! [`Machine::capture`]: crate::machine::Machine::capture
//! [`Machine::restore`]: crate::machine::Machine::restore

pub(crate) mod bounds;
pub mod dirty;
pub mod snapshot;

use crate::board::Board;
use crate::machine::{Hook, VcpusState};
use crate::virtio::mmio::MmioState;
use lockstep_protocol::ids::{GuestTime, Position};
use serde::{Deserialize, Serialize};

/// How the bytes begin.
const MAGIC: [u8; 8] = *b"LSSTATE\n";
/// The format of the bytes behind the header. Any change of any type in [`MachineState`] is a new version.
const VERSION: u32 = 2;
/// Magic, version, length, checksum.
const HEADER_BYTES: usize = 8 + 4 + 4 + 32;
/// More than any machine: rings, the console's input, and the extended registers are the large parts.
pub const STATE_BYTES_MAX: usize = 4 << 20;

/// A machine without its memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachineState {
    pub(crate) template: [u8; 16],
    pub(crate) memory_mib: u64,
    pub(crate) position: Position,
    pub(crate) time: GuestTime,
    pub(crate) vcpus: VcpusState,
    pub(crate) board: Board,
    pub(crate) devices: Vec<MmioState>,
    pub(crate) hook: Option<Hook>,
    /// What the guest's randomness began with.
    pub(crate) randomness: [u8; 32],
    /// The guest asked for a restart that has not come yet.
    pub(crate) restarts: bool,
}

/// Why bytes are no machine's state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Something else.
    #[error("These bytes are not the state of a machine")]
    Foreign,
    /// Another format.
    #[error(
        "The state has format {theirs}, this release reads format {VERSION}; use the same release of Lockstep on all hosts"
    )]
    Version {
        /// The format's number.
        theirs: u32,
    },
    /// Not all of it.
    #[error("The state is cut: {is} of {should_be} bytes are there")]
    Cut {
        /// How many there are.
        is: usize,
        /// How many there were.
        should_be: usize,
    },
    /// Bytes follow.
    #[error("{0} bytes follow the state")]
    Longer(usize),
    /// No machine is so large.
    #[error("The state claims {0} bytes, more than {STATE_BYTES_MAX}")]
    Large(usize),
    /// Not as it was written.
    #[error("The state is damaged: its checksum is wrong")]
    Damaged,
    /// Not a state although it was written so.
    #[error(
        "The state does not decode although its checksum is right; another build of this release wrote it"
    )]
    Undecodable,
}

impl MachineState {
    /// As bytes: a header with version, length and checksum, then everything.
    ///
    /// # Panics
    /// Never: everything in it can be encoded.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let body = postcard::to_stdvec(self).expect("plain numbers and lists of a known length");
        let length = u32::try_from(body.len()).expect("a machine's state is below its limit of 4 MiB");
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(blake3::hash(&body).as_bytes());
        bytes.extend(body);
        bytes
    }

    /// From bytes; all of them must be the state.
    ///
    /// # Errors
    /// When they are not a whole, undamaged state of this format.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let (magic, rest) = bytes.split_first_chunk().ok_or(StateError::Foreign)?;
        if *magic != MAGIC {
            return Err(StateError::Foreign);
        }
        let cut = |should_be| StateError::Cut {
            is: bytes.len(),
            should_be,
        };
        let (version, rest) = rest.split_first_chunk().ok_or_else(|| cut(HEADER_BYTES))?;
        let theirs = u32::from_le_bytes(*version);
        if theirs != VERSION {
            return Err(StateError::Version { theirs });
        }
        let (length, rest) = rest.split_first_chunk().ok_or_else(|| cut(HEADER_BYTES))?;
        let length = usize::try_from(u32::from_le_bytes(*length)).expect("this crate is for 64-bit hosts");
        if length > STATE_BYTES_MAX {
            return Err(StateError::Large(length));
        }
        let (checksum, body) = rest
            .split_first_chunk::<32>()
            .ok_or_else(|| cut(HEADER_BYTES + length))?;
        if body.len() < length {
            return Err(cut(HEADER_BYTES + length));
        }
        if body.len() > length {
            return Err(StateError::Longer(body.len() - length));
        }
        if blake3::hash(body).as_bytes() != checksum {
            return Err(StateError::Damaged);
        }
        match postcard::take_from_bytes(body) {
            Ok((state, [])) => Ok(state),
            _ => Err(StateError::Undecodable),
        }
    }

    /// Where the machine stands.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// What its clock says.
    #[must_use]
    pub fn time(&self) -> GuestTime {
        self.time
    }

    /// MiB of its memory.
    #[must_use]
    pub fn memory_mib(&self) -> u64 {
        self.memory_mib
    }
}

#[cfg(test)]
mod tests;
