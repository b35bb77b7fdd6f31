//! The log's window: how much of it the backup has not acked yet, in records and in bytes, and when that is
//! too much. The primary keeps its accounts here; the records themselves are gone once they are sent.

use std::collections::VecDeque;

use crate::ids::LogOffset;
use crate::limits::{LOG_WINDOW_BYTES, LOG_WINDOW_RECORDS, MILESTONE_BYTES, RESUME_EIGHTHS};

/// How much of the log may be unacked before the primary waits in its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WindowLimit {
    /// Records.
    pub records: u64,
    /// Encoded bytes.
    pub bytes: u64,
}

impl Default for WindowLimit {
    fn default() -> Self {
        Self {
            records: LOG_WINDOW_RECORDS,
            bytes: LOG_WINDOW_BYTES,
        }
    }
}

/// The accounts of one log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LogWindow {
    limit: WindowLimit,
    end: LogOffset,
    acked: LogOffset,
    appended_bytes: u64,
    acked_bytes: u64,
    /// Places in the log that are not acked yet, and how many bytes come before each. One place every
    /// `MILESTONE_BYTES` or so: an ack between two of them counts for the earlier.
    milestones: VecDeque<(LogOffset, u64)>,
}

impl LogWindow {
    pub(crate) fn new(limit: WindowLimit, start: LogOffset) -> Self {
        Self {
            limit,
            end: start,
            acked: start,
            appended_bytes: 0,
            acked_bytes: 0,
            milestones: VecDeque::new(),
        }
    }

    /// One more record of so many bytes. Gives the offset after it.
    pub(crate) fn append(&mut self, bytes: u64) -> LogOffset {
        self.end = self.end.next();
        self.appended_bytes += bytes;
        let last = self
            .milestones
            .back()
            .map_or(self.acked_bytes, |(_, before)| *before);
        if self.appended_bytes - last >= MILESTONE_BYTES {
            self.mark();
        }
        self.end
    }

    /// The end of the log is a place that an ack is likely to name.
    pub(crate) fn mark(&mut self) {
        if self.milestones.back().is_none_or(|(place, _)| *place < self.end) {
            self.milestones.push_back((self.end, self.appended_bytes));
        }
    }

    /// I1: acked never falls, and never passes the end.
    pub(crate) fn ack(&mut self, upto: LogOffset) {
        self.acked = self.acked.max(upto.min(self.end));
        while let Some((place, before)) = self.milestones.front() {
            if *place > self.acked {
                break;
            }
            self.acked_bytes = *before;
            self.milestones.pop_front();
        }
        if self.acked == self.end {
            self.acked_bytes = self.appended_bytes;
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.end.since(self.acked) < self.limit.records && self.unacked_bytes() < self.limit.bytes
    }

    /// Room enough to go on after it was full.
    pub(crate) fn has_ample_room(&self) -> bool {
        let ample = |limit: u64| limit / 8 * RESUME_EIGHTHS + limit % 8 * RESUME_EIGHTHS / 8;
        self.end.since(self.acked) <= ample(self.limit.records)
            && self.unacked_bytes() <= ample(self.limit.bytes)
            && self.has_room()
    }

    pub(crate) fn end(&self) -> LogOffset {
        self.end
    }

    pub(crate) fn acked(&self) -> LogOffset {
        self.acked
    }

    pub(crate) fn appended_bytes(&self) -> u64 {
        self.appended_bytes
    }

    fn unacked_bytes(&self) -> u64 {
        self.appended_bytes - self.acked_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(records: u64, bytes: u64) -> LogWindow {
        LogWindow::new(WindowLimit { records, bytes }, LogOffset::new(10))
    }

    #[test]
    fn a_window_full_of_records_has_room_again_after_one_ack() {
        let mut log = window(2, 1 << 20);
        log.append(2);
        log.append(2);
        assert!(!log.has_room());
        log.ack(LogOffset::new(11));
        assert!(log.has_room());
    }

    #[test]
    fn a_window_full_of_bytes_has_room_again_once_a_milestone_is_acked() {
        let mut log = window(1000, 2 * MILESTONE_BYTES);
        log.append(MILESTONE_BYTES);
        log.append(MILESTONE_BYTES);
        assert!(!log.has_room());
        log.ack(LogOffset::new(11));
        assert!(log.has_room());
        assert_eq!(log.unacked_bytes(), MILESTONE_BYTES);
    }

    #[test]
    fn an_ack_between_two_milestones_counts_for_the_earlier_one() {
        let mut log = window(1000, 1 << 20);
        log.append(100);
        log.append(100);
        log.ack(LogOffset::new(11));
        assert_eq!(log.unacked_bytes(), 200);
        log.ack(LogOffset::new(12));
        assert_eq!(log.unacked_bytes(), 0);
    }

    #[test]
    fn a_window_that_was_full_is_ample_again_when_a_quarter_is_acked() {
        let mut log = window(8, 1 << 20);
        (0..8).for_each(|_| {
            log.append(2);
        });
        log.ack(LogOffset::new(11));
        assert!(log.has_room() && !log.has_ample_room());
        log.ack(LogOffset::new(12));
        assert!(log.has_ample_room());
    }

    #[test]
    fn a_late_ack_takes_nothing_back() {
        let mut log = window(1000, 1 << 20);
        log.append(1);
        log.append(1);
        log.ack(LogOffset::new(12));
        log.ack(LogOffset::new(11));
        assert_eq!(log.acked(), LogOffset::new(12));
    }

    #[test]
    fn the_accounts_of_a_long_log_stay_small() {
        let mut log = window(1 << 20, 1 << 20);
        (0..100_000).for_each(|_| {
            log.append(3);
        });
        assert!(log.milestones.len() as u64 <= 300_000 / MILESTONE_BYTES + 1);
    }
}
