//! The windows of a backup's VM: which record enters now, which waits for a later window, and when the VM may run
//! on (I3). The vCPU thread asks it about every record and applies what enters. It never waits and knows no VM.

use crate::ids::Position;
use crate::record::{Input, Record};

/// What becomes of a record while a window is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// It enters now, and others may follow it into this window.
    Enters(Record),
    /// It enters now and closes the window: then the VM runs on.
    EntersLast(Record),
    /// It is of a later window, so this one takes no more: the VM runs on. The record is kept until then.
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
}

/// Follows the windows of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Follower {
    /// The first record of a later window.
    ahead: Option<Record>,
}

impl Follower {
    /// At the beginning of a log.
    pub fn new() -> Self {
        Self::default()
    }

    /// The record that was kept, if one was: it comes before whatever the log delivers next.
    pub fn poll_kept(&mut self) -> Option<Record> {
        self.ahead.take()
    }

    /// The next record, while the VM stands in the window at `at`; `called` says whether its guest called for an
    /// output in the exit that opened it, or ended.
    pub fn handle_record(
        &mut self,
        record: Record,
        at: Position,
        called: bool,
    ) -> Result<Admitted, Misplaced> {
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
        if matches!(record.input, Input::Mark) && !called {
            return Err(Misplaced::NoOutput(at));
        }
        // Act: only a record that closes the window lets the VM past it (I3).
        Ok(match record.closes {
            true => Admitted::EntersLast(record),
            false => Admitted::Enters(record),
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const HERE: Position = Position::new(7);

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

    #[test]
    fn a_window_stays_open_until_a_record_closes_it() {
        let mut follower = Follower::new();
        assert_eq!(
            follower.handle_record(typed(7, false), HERE, false),
            Ok(Admitted::Enters(typed(7, false)))
        );
        assert_eq!(
            follower.handle_record(typed(7, true), HERE, false),
            Ok(Admitted::EntersLast(typed(7, true)))
        );
    }

    #[test]
    fn a_record_of_a_later_window_closes_this_one_and_is_kept() {
        let mut follower = Follower::new();
        assert_eq!(
            follower.handle_record(typed(9, true), HERE, false),
            Ok(Admitted::Later)
        );
        assert_eq!(follower.poll_kept(), Some(typed(9, true)));
        assert_eq!(follower.poll_kept(), None);
    }

    #[test]
    fn a_record_of_a_window_that_was_passed_is_refused() {
        let passed = Misplaced::Passed {
            at: HERE,
            record: Position::new(6),
        };
        assert_eq!(
            Follower::new().handle_record(typed(6, true), HERE, false),
            Err(passed)
        );
    }

    #[test]
    fn a_mark_where_our_guest_called_for_nothing_is_refused() {
        let mark = || record(7, true, Input::Mark);
        let mut follower = Follower::new();
        assert_eq!(
            follower.handle_record(mark(), HERE, false),
            Err(Misplaced::NoOutput(HERE))
        );
        assert_eq!(
            follower.handle_record(mark(), HERE, true),
            Ok(Admitted::EntersLast(mark()))
        );
    }
}
