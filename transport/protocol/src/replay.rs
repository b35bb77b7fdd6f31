//! The windows of a backup's VM: which record enters now, which waits for a later window, and when the VM may run
//! on (I3). The vCPU thread asks it about every record and applies what enters. It never waits and knows no VM.

use bytes::Bytes;

use crate::ids::Position;
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
    /// A delta is larger than any VM of this size can need.
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
        if self.bytes > self.bytes_max {
            return Err(Misplaced::LargeDelta(at));
        }
        self.pages.push(pages);
        Ok(Admitted::Kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Position = Position::new(7);
    const PIECE: Bytes = Bytes::from_static(b"piece");

    fn follower() -> Follower {
        Follower::new(2 * PIECE.len())
    }

    fn record(position: u64, closes: bool, input: Input<Bytes>) -> Record {
        Record {
            position: Position::new(position),
            closes,
            input,
        }
    }

    fn typed(position: u64, closes: bool) -> Record {
        let bytes = Bytes::from_static(b"x");
        record(position, closes, Input::Console { bytes })
    }

    fn pages(position: u64) -> Record {
        record(position, false, Input::DeltaPages { bytes: PIECE })
    }

    fn end(position: u64) -> Record {
        record(position, false, Input::DeltaEnd { bytes: PIECE })
    }

    #[test]
    fn the_vm_stays_in_a_window_that_is_closed_until_a_later_one_is_heard_of() {
        let mut follower = follower();
        assert_eq!(
            follower.handle_record(typed(7, true), HERE, false),
            Ok(Admitted::Enters(typed(7, true)))
        );
        assert_eq!(
            follower.handle_record(typed(9, true), HERE, false),
            Ok(Admitted::Later)
        );
        assert_eq!(follower.poll_kept(), Some(typed(9, true)));
        assert_eq!(follower.poll_kept(), None);
    }

    #[test]
    fn a_delta_enters_when_it_is_whole_and_inputs_may_follow_it() {
        let mut follower = follower();
        let mut handle = |record| follower.handle_record(record, HERE, false);
        assert_eq!(handle(pages(7)), Ok(Admitted::Kept));
        assert_eq!(handle(pages(7)), Ok(Admitted::Kept));
        assert_eq!(
            handle(end(7)),
            Ok(Admitted::Delta {
                pages: vec![PIECE, PIECE],
                end: PIECE,
                heals: false
            })
        );
        assert_eq!(handle(typed(7, true)), Ok(Admitted::Enters(typed(7, true))));
    }

    #[test]
    fn a_delta_of_a_later_position_waits_until_the_vm_has_come_there() {
        let mut follower = follower();
        assert_eq!(follower.handle_record(pages(8), HERE, false), Ok(Admitted::Later));
        let kept = follower.poll_kept().unwrap();
        assert_eq!(
            follower.handle_record(kept, HERE.next(), false),
            Ok(Admitted::Kept)
        );
    }

    #[test]
    fn a_delta_that_breaks_off_is_refused() {
        let mut first = follower();
        first.handle_record(pages(7), HERE, false).unwrap();
        let mut second = first.clone();
        let broken = Err(Misplaced::BrokenDelta(HERE));
        assert_eq!(first.handle_record(typed(7, true), HERE, false), broken);
        assert_eq!(second.handle_record(end(8), HERE, false), broken);
    }

    #[test]
    fn a_delta_that_is_larger_than_the_machine_is_refused() {
        let mut follower = follower();
        follower.handle_record(pages(7), HERE, false).unwrap();
        follower.handle_record(pages(7), HERE, false).unwrap();
        assert_eq!(
            follower.handle_record(pages(7), HERE, false),
            Err(Misplaced::LargeDelta(HERE))
        );
    }

    #[test]
    fn a_vm_that_has_diverged_takes_nothing_but_a_delta_that_heals() {
        let mut follower = follower();
        follower.handle_record(pages(7), HERE, false).unwrap();
        follower.stray();
        let mut handle = |record| follower.handle_record(record, HERE, false);
        assert_eq!(handle(typed(7, true)), Ok(Admitted::Dropped));
        assert_eq!(handle(pages(8)), Ok(Admitted::Dropped));
        assert_eq!(handle(end(8)), Ok(Admitted::Dropped));
        assert_eq!(handle(record(9, false, Input::Heal)), Ok(Admitted::Kept));
        assert_eq!(handle(pages(9)), Ok(Admitted::Kept));
        assert_eq!(
            handle(end(9)),
            Ok(Admitted::Delta {
                pages: vec![PIECE],
                end: PIECE,
                heals: true
            })
        );
        assert!(!follower.is_astray());
    }

    #[test]
    fn a_delta_that_heals_is_refused_by_a_vm_that_has_not_diverged() {
        let heal = record(7, false, Input::Heal);
        assert_eq!(
            follower().handle_record(heal, HERE, false),
            Err(Misplaced::Unasked(HERE))
        );
    }

    #[test]
    fn a_record_of_a_window_that_was_passed_is_refused() {
        let passed = Misplaced::Passed {
            at: HERE,
            record: Position::new(6),
        };
        assert_eq!(follower().handle_record(typed(6, true), HERE, false), Err(passed));
    }

    #[test]
    fn a_mark_where_our_guest_called_for_nothing_is_refused() {
        let mark = || record(7, true, Input::Mark);
        let mut follower = follower();
        assert_eq!(
            follower.handle_record(mark(), HERE, false),
            Err(Misplaced::NoOutput(HERE))
        );
        assert_eq!(
            follower.handle_record(mark(), HERE, true),
            Ok(Admitted::Enters(mark()))
        );
    }
}
