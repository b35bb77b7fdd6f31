//! The spare takes a VM in: memory as it comes, then the machine. The run loop of a spare calls it before there is a
//! session, with a machine that was built and never ran. It confirms nothing: the caller does when it can follow a log.

use super::disk::intake::{DiskIntake, DiskIntakeError};
use super::pages::{self, BadPages};
use super::piece;
use super::progress::Progress;
use crate::memory::GuestRam;
use crate::state::{MachineState, StateError};
use bytes::{Buf, Bytes};
use lockstep_image::PairingId;
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
    /// The disk does not come, or cannot be put in place.
    #[error(transparent)]
    Disk(#[from] DiskIntakeError),
    /// Parts of a mirrored disk for a VM that has none here, or no such parts for one that has.
    #[error("The other host and this one do not agree whether the VM has a mirrored disk")]
    NoDisk,
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
    /// The pairing in which the two images of a mirrored disk are equal.
    pub pairing: Option<PairingId>,
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

/// Takes everything in, pages into `memory`, the blocks of a mirrored disk into the image of `disk`.
///
/// # Errors
/// When it does not come whole. What is in `memory` then is of no use.
pub fn take_in(
    source: &mut StateReceiver,
    memory: &GuestRam,
    disk: Option<DiskIntake>,
    progress: &Progress,
) -> Result<Taken, IntakeError> {
    progress.begin();
    progress.round(0, 0);
    if let Some(disk) = &disk {
        source.tell_account(&disk.account())?;
    }
    let mut intake = Intake::new(memory, disk, progress);
    loop {
        let (kind, bytes) = source.take()?;
        match intake.handle_piece(kind, bytes)? {
            Step::Next => {}
            Step::Confirm => source.confirm(source.peer().term, LogOffset::ZERO, Position::ZERO)?,
            Step::Taken(taken) => return Ok(*taken),
        }
    }
}

/// Where pieces go, whoever sends them.
pub struct Intake<'a> {
    memory: &'a GuestRam,
    disk: Option<DiskIntake>,
    pairing: Option<PairingId>,
    progress: &'a Progress,
}

impl<'a> Intake<'a> {
    /// For a machine with `memory`, and a mirrored disk if the VM has one.
    #[must_use]
    pub fn new(memory: &'a GuestRam, disk: Option<DiskIntake>, progress: &'a Progress) -> Self {
        Self {
            memory,
            disk,
            pairing: None,
            progress,
        }
    }

    /// Takes one piece in: what another host said, whatever it is.
    ///
    /// # Errors
    /// When there is no such piece, or it does not fit here.
    pub fn handle_piece(&mut self, kind: u8, bytes: Bytes) -> Result<Step, IntakeError> {
        match kind {
            piece::PAGES => {
                let count = pages::apply(&bytes, self.memory)?;
                self.progress.moved(count, bytes.len() as u64);
            }
            piece::ROUND => return Ok(Step::Confirm),
            piece::PAIRING => self.pairing = PairingId::try_from(&*bytes).ok(),
            piece::MACHINE if self.pairing.is_some() != self.disk.is_some() => {
                return Err(IntakeError::NoDisk);
            }
            piece::MACHINE => return Ok(Step::Taken(Box::new(machine(bytes, self.pairing)?))),
            piece::DISK | piece::ANNOUNCED | piece::BLOCKS => self.handle_disk(kind, &bytes)?,
            other => return Err(IntakeError::Piece(other)),
        }
        Ok(Step::Next)
    }

    fn handle_disk(&mut self, kind: u8, bytes: &[u8]) -> Result<(), IntakeError> {
        let disk = self.disk.as_mut().ok_or(IntakeError::NoDisk)?;
        match kind {
            piece::DISK => self.progress.disk_begins(disk.begin(bytes)?),
            piece::ANNOUNCED => disk.announce(bytes)?,
            _ => self.progress.disk_moved(disk.apply(bytes)?, bytes.len() as u64),
        }
        Ok(())
    }
}

fn machine(mut bytes: Bytes, pairing: Option<PairingId>) -> Result<Taken, IntakeError> {
    let start = bytes.try_get_u64_le().map_err(|_| IntakeError::NoStart)?;
    Ok(Taken {
        start: LogOffset::new(start),
        state: MachineState::decode(&bytes)?,
        pairing,
    })
}
