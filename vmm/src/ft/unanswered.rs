//! What a device process was ordered and has not answered. Its port keeps it, to know when the process has nothing left of a
//! driver that is gone. It judges nothing: who answers what it was not given is found out where answers enter.

use crate::virtio::mmio::DeviceKind;
use lockstep_protocol::ids::{Head, QueueIndex};
use lockstep_staging::message::Staged;
use std::collections::BTreeSet;

/// Orders without an answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// Chains that are answered in their order: how many.
    Chains(usize),
    /// Requests that are answered one by one. One that was given twice is answered once.
    Requests(BTreeSet<(QueueIndex, Head)>),
}

impl Unanswered {
    /// Of a process that has no orders yet.
    pub(super) fn of(kind: DeviceKind) -> Self {
        match kind {
            DeviceKind::Net => Self::Chains(0),
            DeviceKind::Blk => Self::Requests(BTreeSet::new()),
        }
    }

    /// One more order.
    pub(super) fn add(&mut self, queue: QueueIndex, head: Head) {
        match self {
            Self::Chains(count) => *count += 1,
            Self::Requests(open) => drop(open.insert((queue, head))),
        }
    }

    /// The process has answered something.
    pub(super) fn handle_answer(&mut self, answer: &Staged) {
        match (self, answer) {
            (Self::Chains(open), Staged::Returned { count, .. }) => {
                *open = open.saturating_sub(usize::from(*count));
            }
            (Self::Requests(open), Staged::Completion { queue, head }) => drop(open.remove(&(*queue, *head))),
            _ => {}
        }
    }

    /// Whether everything is answered.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Chains(count) => *count == 0,
            Self::Requests(open) => open.is_empty(),
        }
    }

    /// No answer is waited for any more.
    pub(super) fn forget(&mut self) {
        match self {
            Self::Chains(count) => *count = 0,
            Self::Requests(open) => open.clear(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: QueueIndex = QueueIndex::new(0);

    #[test]
    fn a_disk_is_done_when_each_request_is_answered_whatever_the_order_and_however_often_it_was_given() {
        let mut unanswered = Unanswered::of(DeviceKind::Blk);
        for head in [3, 7, 3] {
            unanswered.add(QUEUE, Head::new(head));
        }
        for head in [7, 3] {
            assert!(!unanswered.is_empty());
            unanswered.handle_answer(&Staged::Completion {
                queue: QUEUE,
                head: Head::new(head),
            });
        }
        assert!(unanswered.is_empty());
    }

    #[test]
    fn a_network_card_is_done_when_as_many_chains_came_back_as_were_given() {
        let mut unanswered = Unanswered::of(DeviceKind::Net);
        (0..3).for_each(|head| unanswered.add(QUEUE, Head::new(head)));
        for count in [2, 1] {
            assert!(!unanswered.is_empty());
            unanswered.handle_answer(&Staged::Returned { queue: QUEUE, count });
        }
        assert!(unanswered.is_empty());
    }
}
