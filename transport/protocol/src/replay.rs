//! The windows of a backup's VM: which record enters now, which waits for a later window, and when the VM may run
//! on (I3). The vCPU thread asks it about every record and applies what enters. It never waits and knows no VM.

use bytes::Bytes;

use crate::ids::Position;
use crate::limits::DELTA_PIECES_FEW;
use crate::record::{Input, Record};

/// What becomes of a record while a window is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// It enters now, and others may follow it at this position.
    Enters(Record),
    /// Nothing enters yet: it is a piece of a delta, and is kept until the delta is whole.
    Kept,
    /// A delta is whole and enters now: the VM becomes what the pages and the last record say.
    Delta {
        /// Its pages, in the order of the log.
        pages: Vec<Bytes>,
        /// The machine apart from its memory.
        end: Bytes,
        /// It makes a VM that has diverged the primary's again, wherever that stands.
        heals: bool,
    },
    /// It is of no use to a VM that has diverged.
    Dropped,
    /// It is of a later window: the VM runs on to the next exit. The record is kept until then.
    Later,
}

/// A record that cannot belong to the VM that stands here: it is no longer the primary's VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misplaced {
    /// The VM has passed the record's position.
    #[error("The machine is at position {at}, but the log has a record for {record}")]
    Passed {
        /// Where the VM is.
        at: Position,
        /// Where the record belongs.
        record: Position,
    },
    /// The primary's guest called for an output here or ended, ours did not.
    #[error("At position {0} the primary's guest called for an output, this one did not")]
    NoOutput(Position),
    /// Something else comes before the end of a delta.
    #[error("At position {0} a delta breaks off in the middle")]
    BrokenDelta(Position),
    /// A delta that heals comes to a VM that is not known to have diverged.
    #[error("At position {0} a delta comes that heals, but this machine has not diverged")]
    Unasked(Position),
    /// A delta is larger, or in more pieces, than any VM of this size can need.
    #[error("At position {0} a delta comes that is larger than the machine")]
    LargeDelta(Position),
}

/// Follows the windows of a log. A delta that is not whole when the log ends was never there: nothing that depends on
/// it was released (I5), for its end is a record like others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Follower {
    /// The first record of a later window.
    ahead: Option<Record>,
    /// The delta that is coming.
    pages: Vec<Bytes>,
    /// How many bytes it has.
    bytes: usize,
    /// How many it may have.
    bytes_max: usize,
    course: Course,
}

/// Whether the VM is still the primary's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Course {
    /// It is.
    Straight,
    /// It is not: nothing enters any more but a delta that heals.
    Astray,
    /// It is not, and such a delta is coming.
    Healing,
}

impl Follower {
    /// At the beginning of a log. A delta may have as many bytes as the pages of the whole VM.
    pub fn new(delta_bytes_max: usize) -> Self {
        Self {
            ahead: None,
            pages: Vec::new(),
            bytes: 0,
            bytes_max: delta_bytes_max,
            course: Course::Straight,
        }
    }

    /// The record that was kept, if one was: it comes before whatever the log delivers next.
    pub fn poll_kept(&mut self) -> Option<Record> {
        self.ahead.take()
    }

    /// The VM has diverged: what is kept is dropped, and so is what comes, up to a delta that heals.
    pub fn stray(&mut self) {
        self.course = Course::Astray;
        self.pages.clear();
        self.bytes = 0;
    }

    /// Is the VM known to have diverged?
    pub fn is_astray(&self) -> bool {
        self.course != Course::Straight
    }

    /// The next record, while the VM stands in the window at `at`, or past it where a delta has put it; `called` says
    /// whether its guest called for an output in the exit that opened the window, or ended.
    pub fn handle_record(
        &mut self,
        record: Record,
        at: Position,
        called: bool,
    ) -> Result<Admitted, Misplaced> {
        if self.is_astray() {
            return self.handle_astray(record, at);
        }
        // Check: a delta comes whole, and the VM runs on before or behind it.
        if !self.pages.is_empty() && (record.position > at || !record.input.is_delta()) {
            return Err(Misplaced::BrokenDelta(at));
        }
        if record.position > at {
            self.ahead = Some(record);
            return Ok(Admitted::Later);
        }
        // Check: positions never go back (I2), and equal VMs call for equal outputs.
        if record.position < at {
            return Err(Misplaced::Passed {
                at,
                record: record.position,
            });
        }
        // Act: only a record of a later window lets the VM past this one (I3).
        match record.input {
            Input::Mark if !called => Err(Misplaced::NoOutput(at)),
            Input::DeltaPages { bytes } => self.keep(bytes, at),
            Input::DeltaEnd { bytes } => Ok(self.whole(bytes, false)),
            Input::Heal => Err(Misplaced::Unasked(at)),
            _ => Ok(Admitted::Enters(record)),
        }
    }

    /// A delta that was made before the primary knew of the divergence heals nothing.
    fn handle_astray(&mut self, record: Record, at: Position) -> Result<Admitted, Misplaced> {
        match (self.course, record.input) {
            (_, Input::Heal) => {
                self.stray();
                self.course = Course::Healing;
                Ok(Admitted::Kept)
            }
            (Course::Healing, Input::DeltaPages { bytes }) => self.keep(bytes, at),
            (Course::Healing, Input::DeltaEnd { bytes }) => {
                self.course = Course::Straight;
                Ok(self.whole(bytes, true))
            }
            (Course::Healing, _) => Err(Misplaced::BrokenDelta(at)),
            (Course::Straight | Course::Astray, _) => Ok(Admitted::Dropped),
        }
    }

    fn whole(&mut self, end: Bytes, heals: bool) -> Admitted {
        self.bytes = 0;
        Admitted::Delta {
            pages: std::mem::take(&mut self.pages),
            end,
            heals,
        }
    }

    fn keep(&mut self, pages: Bytes, at: Position) -> Result<Admitted, Misplaced> {
        self.bytes += pages.len();
        // Pieces without a byte are not free either.
        let pieces_max = DELTA_PIECES_FEW.max(self.bytes_max / size_of::<Bytes>());
        if self.bytes > self.bytes_max || self.pages.len() >= pieces_max {
            return Err(Misplaced::LargeDelta(at));
        }
        self.pages.push(pages);
        Ok(Admitted::Kept)
    }
}

#[cfg(test)]
mod tests;
