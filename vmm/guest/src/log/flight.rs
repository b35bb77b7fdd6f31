//! The batches on their way to the disk. The log adds them in order, asks which flushes are due, and hears how far all are
//! durable; requests may end in any order. Knows groups, tags and how much memory is away, neither bytes nor places.

use alloc::collections::VecDeque;

use crate::disk::Tag;
use crate::limits::BATCHES_OUT;
use crate::units::Group;

/// Tags of the batches' requests begin here; below are those of recovery and compaction.
const FIRST_TAG: u32 = 2;

/// Where a batch's flush stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    /// Not asked for.
    Due,
    Asked,
    Done,
}

#[derive(Debug)]
struct Batch {
    group: Group,
    /// What its write holds until it is done.
    memory: usize,
    is_written: bool,
    flush: Flush,
}

/// Batches whose writes were submitted, oldest first. Never more than [`BATCHES_OUT`].
#[derive(Debug, Default)]
pub(super) struct Flight {
    batches: VecDeque<Batch>,
    /// The oldest one's slot. Tags are made from slots, which go round.
    first: usize,
}

impl Flight {
    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.batches.len() == BATCHES_OUT
    }

    /// Memory that the disk has not given back.
    pub(super) fn held(&self) -> usize {
        let is_out = |batch: &&Batch| !batch.is_written;
        self.batches.iter().filter(is_out).map(|batch| batch.memory).sum()
    }

    /// A batch sets out, with so much memory; answers the tag of its write. There must be room.
    pub(super) fn begin(&mut self, group: Group, memory: usize) -> Tag {
        let at = self.batches.len();
        self.batches.push_back(Batch {
            group,
            memory,
            is_written: false,
            flush: Flush::Due,
        });
        self.tag_of(at, false)
    }

    /// The tag of a flush that is to be submitted now. `in_order`: it may follow its write at once.
    pub(super) fn poll_flush(&mut self, in_order: bool) -> Option<Tag> {
        let is_due = |batch: &Batch| batch.flush == Flush::Due && (in_order || batch.is_written);
        let at = self.batches.iter().position(is_due)?;
        self.batches[at].flush = Flush::Asked;
        Some(self.tag_of(at, true))
    }

    /// A request ended well. Answers whether it was a write.
    pub(super) fn handle_done(&mut self, tag: Tag) -> bool {
        let number = tag.0.wrapping_sub(FIRST_TAG) as usize;
        let (slot, is_write) = (number / 2, number.is_multiple_of(2));
        let at = (slot + BATCHES_OUT - self.first) % BATCHES_OUT;
        match self.batches.get_mut(at) {
            Some(batch) if is_write => batch.is_written = true,
            Some(batch) => batch.flush = Flush::Done,
            None => (),
        }
        is_write
    }

    /// The last group up to which everything is durable, if that moved on. `needs_flush`: a write alone is not enough.
    pub(super) fn poll_durable(&mut self, needs_flush: bool) -> Option<Group> {
        let mut durable = None;
        while let Some(batch) = self.batches.front()
            && batch.is_written
            && (batch.flush == Flush::Done || !needs_flush)
        {
            durable = Some(batch.group);
            self.batches.pop_front();
            self.first = (self.first + 1) % BATCHES_OUT;
        }
        durable
    }

    fn tag_of(&self, at: usize, is_flush: bool) -> Tag {
        let slot = (self.first + at) % BATCHES_OUT;
        Tag(FIRST_TAG + 2 * slot as u32 + u32::from(is_flush))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_durable_only_when_those_before_it_are() {
        let mut flight = Flight::default();
        let [one, two] = [Group::ZERO.next(), Group::ZERO.next().next()];
        let [write_one, write_two] = [one, two].map(|group| flight.begin(group, 1));
        assert!(flight.is_full());
        let [flush_one, flush_two] = [(); 2].map(|()| flight.poll_flush(true).unwrap());

        assert!(flight.handle_done(write_two));
        assert!(!flight.handle_done(flush_two));
        assert_eq!(flight.poll_durable(true), None);
        flight.handle_done(flush_one);
        assert_eq!(flight.poll_durable(true), None, "its flush overtook its write");
        flight.handle_done(write_one);
        assert_eq!(flight.poll_durable(true), Some(two));
        assert!(flight.is_empty());
    }

    #[test]
    fn a_disk_that_reorders_is_asked_for_a_flush_only_behind_a_write_that_is_done() {
        let mut flight = Flight::default();
        let write = flight.begin(Group::ZERO.next(), 1);
        assert_eq!(flight.poll_flush(false), None);
        flight.handle_done(write);
        assert!(flight.poll_flush(false).is_some());
        assert_eq!(flight.poll_flush(false), None, "once is enough");
    }

    #[test]
    fn a_write_is_enough_for_a_disk_that_needs_no_flush() {
        let mut flight = Flight::default();
        let write = flight.begin(Group::ZERO.next(), 1);
        flight.handle_done(write);
        assert_eq!(flight.poll_durable(false), Some(Group::ZERO.next()));
    }

    #[test]
    fn memory_is_held_until_the_write_is_done_whatever_the_flush_does() {
        let mut flight = Flight::default();
        let [one, two] = [3, 4].map(|memory| flight.begin(Group::ZERO.next(), memory));
        assert_eq!(flight.held(), 7);
        flight.handle_done(two);
        assert_eq!(flight.held(), 3);
        flight.handle_done(one);
        assert_eq!((flight.held(), flight.is_full()), (0, true));
    }

    #[test]
    fn slots_go_round_and_the_batches_keep_their_order() {
        let mut flight = Flight::default();
        let mut group = Group::ZERO;
        let mut writes = VecDeque::new();
        for _ in 0..3 * BATCHES_OUT {
            group = group.next();
            writes.push_back((flight.begin(group, 1), group));
            if flight.is_full() {
                let (write, oldest) = writes.pop_front().unwrap();
                flight.handle_done(write);
                assert_eq!(flight.poll_durable(false), Some(oldest));
            }
        }
    }
}
