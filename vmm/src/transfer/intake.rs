//! The spare takes a VM in: memory as it comes, then the machine. The run loop of a spare calls it before there is a
//! session, with a machine that was built and never ran. It confirms nothing: the caller does when it can follow a log.

use super::pages::{self, BadPages};
use super::piece;
use super::progress::Progress;
use crate::memory::GuestRam;
use crate::state::{MachineState, StateError};
use bytes::{Buf, Bytes};
use lockstep_protocol::ids::{LogOffset, Position};
use lockstep_quic::link::PairError;
use lockstep_quic::state::StateReceiver;

/// Why a VM could not be taken in.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// The other host is gone, or broke the rules of the connection.
    #[error(transparent)]
    Source(#[from] PairError),
    /// What came as pages is none.
    #[error(transparent)]
    Pages(#[from] BadPages),
    /// What came as a machine is none.
    #[error(transparent)]
    State(#[from] StateError),
    /// Something else came.
    #[error("A piece of kind {0} came, which there is not")]
    Piece(u8),
    /// A machine without the beginning of its log.
    #[error("The state of the machine does not say where its log begins")]
    NoStart,
}

/// A machine that came whole, apart from the memory that it was put in.
#[derive(Debug)]
pub struct Taken {
    /// Where the log begins.
    pub start: LogOffset,
    /// The machine.
    pub state: MachineState,
}

/// What is to be done after a piece.
#[derive(Debug)]
pub enum Step {
    /// The next piece is taken.
    Next,
    /// The source is told that everything so far is in place.
    Confirm,
    /// That was all of it.
    Taken(Box<Taken>),
}

/// Takes everything in, pages into `memory`.
///
/// # Errors
/// When it does not come whole. What is in `memory` then is of no use.
pub fn take_in(
    source: &mut StateReceiver,
    memory: &GuestRam,
    progress: &Progress,
) -> Result<Taken, IntakeError> {
    progress.begin();
    progress.round(0);
    loop {
        let (kind, bytes) = source.take()?;
        match take_piece(kind, bytes, memory, progress)? {
            Step::Next => {}
            Step::Confirm => source.confirm(source.peer().term, LogOffset::ZERO, Position::ZERO)?,
            Step::Taken(taken) => return Ok(*taken),
        }
    }
}

/// Takes one piece in: what another host said, whatever it is.
///
/// # Errors
/// When there is no such piece.
pub fn take_piece(
    kind: u8,
    bytes: Bytes,
    memory: &GuestRam,
    progress: &Progress,
) -> Result<Step, IntakeError> {
    match kind {
        piece::PAGES => {
            let count = pages::apply(&bytes, memory)?;
            progress.moved(count, bytes.len() as u64);
            Ok(Step::Next)
        }
        piece::ROUND => Ok(Step::Confirm),
        piece::MACHINE => Ok(Step::Taken(Box::new(machine(bytes)?))),
        other => Err(IntakeError::Piece(other)),
    }
}

fn machine(mut bytes: Bytes) -> Result<Taken, IntakeError> {
    let start = bytes.try_get_u64_le().map_err(|_| IntakeError::NoStart)?;
    Ok(Taken {
        start: LogOffset::new(start),
        state: MachineState::decode(&bytes)?,
    })
}
