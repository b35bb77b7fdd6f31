//! An output that waits to be issued, and the question whether it may be.
//!
//! Made and completed by `submit.rs`, which keeps them in order. [`Held::issue`] is the only way from a guest's change to
//! a protected VM's disk.

use std::io;

use lockstep_protocol::{Gate, LogOffset};
use lockstep_staging::{DeviceEnd, boottime};

use crate::change::{Change, Progress};
use crate::disk::Disk;
use crate::request::Reply;
use crate::sink::Ticket;

/// An output and what it takes to complete it.
#[derive(Debug)]
pub struct Held {
    /// Which request it is of.
    pub ticket: Ticket,
    /// Where its answer goes.
    pub reply: Reply,
    /// What must be acked before.
    pub needs: LogOffset,
    /// What is to be done.
    pub work: Work,
}

/// What an output does.
#[derive(Debug)]
pub enum Work {
    /// It changes the disk.
    Change(Change),
    /// It makes what was changed before stay.
    Flush,
}

impl Work {
    /// What fails when it fails, for the log.
    pub fn doing(&self) -> &'static str {
        match self {
            Self::Change(_) => "writing",
            Self::Flush => "flushing",
        }
    }
}

impl Held {
    /// How many bytes of memory it occupies.
    pub fn weight(&self) -> usize {
        match &self.work {
            Work::Change(change) => change.weight(),
            Work::Flush => 0,
        }
    }

    /// Goes on until it is complete; `None` when it has to stop first.
    pub fn issue(&mut self, end: &mut DeviceEnd, disk: &mut Disk) -> Option<io::Result<()>> {
        loop {
            if !may_issue(end, disk, self.needs) {
                return None;
            }
            let outcome = match &mut self.work {
                Work::Change(change) => change.step(disk),
                Work::Flush => disk.flush().map(|()| Progress::Done),
            };
            match outcome {
                Ok(Progress::More) => {}
                Ok(Progress::Done) => {
                    if let (Work::Change(_), Some(changes)) = (&self.work, disk.changes()) {
                        changes.changed();
                    }
                    return Some(Ok(()));
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// THE question before a shared disk changes: is everything that this output needs acked, and is it still our term?
/// The gate is read first and the clock after it, so a lease is never taken for longer than it was.
fn may_issue(end: &mut DeviceEnd, disk: &Disk, needs: LogOffset) -> bool {
    let gate = gate_of(end, disk);
    gate.lets(needs, boottime())
}

/// What lets changes of this disk through. An image of one's own is seen by nobody outside: its changes are no outputs.
pub(crate) fn gate_of(end: &mut DeviceEnd, disk: &Disk) -> Gate {
    if disk.is_mirrored() {
        Gate::ALONE
    } else {
        end.gate()
    }
}
