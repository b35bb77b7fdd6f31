//! What was taken and is not completed yet, in protected mode.
//!
//! Kept by `submit.rs`. It refuses a head that is in flight already, which bounds everything that is kept for each
//! request: a queue has so many heads and no more. It never completes anything.

use std::collections::BTreeSet;

use thiserror::Error;

use crate::limits::{QUEUE_SIZE_MAX, QUEUES};
use crate::sink::Ticket;

/// The requests in flight.
#[derive(Debug, Default)]
pub struct Inflight {
    taken: BTreeSet<Ticket>,
}

/// Why an order is not taken. The guest or the VMM made a mistake, and nobody waits for an answer to it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Refused {
    /// There is no such queue or head.
    #[error("An order names a queue or head that no front-end can have")]
    Unknown,
    /// It was given before.
    #[error("An order names a head that is in flight already")]
    Twice,
}

impl Inflight {
    /// Takes a request.
    pub fn take(&mut self, ticket: Ticket) -> Result<(), Refused> {
        let known =
            usize::from(ticket.queue.get()) < QUEUES && usize::from(ticket.head.get()) < QUEUE_SIZE_MAX;
        if !known {
            return Err(Refused::Unknown);
        }
        if self.taken.insert(ticket) {
            Ok(())
        } else {
            Err(Refused::Twice)
        }
    }

    /// A request was completed; its head may come again.
    pub fn complete(&mut self, ticket: Ticket) {
        let was_taken = self.taken.remove(&ticket);
        debug_assert!(was_taken, "only what was taken is completed");
    }

    /// Forgets everything; says how many there were.
    pub fn forget(&mut self) -> usize {
        std::mem::take(&mut self.taken).len()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.taken.len()
    }
}

#[cfg(test)]
mod tests {
    use lockstep_protocol::{Head, QueueIndex};

    use super::*;

    fn ticket(queue: u16, head: u16) -> Ticket {
        Ticket {
            queue: QueueIndex::new(queue),
            head: Head::new(head),
        }
    }

    #[test]
    fn a_head_given_twice_is_refused_until_it_was_completed() {
        let mut inflight = Inflight::default();
        assert_eq!(inflight.take(ticket(0, 7)), Ok(()));
        assert_eq!(inflight.take(ticket(0, 7)), Err(Refused::Twice));
        assert_eq!(inflight.take(ticket(1, 7)), Ok(()));
        inflight.complete(ticket(0, 7));
        assert_eq!(inflight.take(ticket(0, 7)), Ok(()));
        assert_eq!(inflight.count(), 2);
    }

    #[test]
    fn a_queue_that_nobody_has_takes_no_memory() {
        let mut inflight = Inflight::default();
        assert_eq!(inflight.take(ticket(9, 0)), Err(Refused::Unknown));
        assert_eq!(inflight.take(ticket(0, 1024)), Err(Refused::Unknown));
        assert_eq!(inflight.count(), 0);
    }
}
