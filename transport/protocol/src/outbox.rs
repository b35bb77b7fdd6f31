//! The output rule, here and nowhere else: an output leaves only when every record before its `needs` is
//! acked and the lease is not over. Device processes hold their outputs here. It never sends anything itself.

use std::collections::VecDeque;

use crate::ids::LogOffset;
use crate::limits::{MAX_HELD_BYTES, MAX_HELD_OUTPUTS};
use crate::time::Instant;

/// What the VMM last said about releasing: how far the backup holds the log, and until when we may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gate {
    /// The backup holds every record before this.
    pub acked: LogOffset,
    /// Nothing is released at or after this moment.
    pub lease_until: Instant,
}

impl Gate {
    /// Nothing leaves: a backup, a primary before its first lease, a host that halted.
    pub const SHUT: Self = Self {
        acked: LogOffset::ZERO,
        lease_until: Instant::ZERO,
    };
    /// Everything leaves: this host holds its term alone, and nobody else can take it over.
    pub const ALONE: Self = Self {
        acked: LogOffset::MAX,
        lease_until: Instant::FOREVER,
    };

    /// The output rule (I5, I6): is an output with these needs allowed to leave at `now`?
    pub fn lets(&self, needs: LogOffset, now: Instant) -> bool {
        needs <= self.acked && now < self.lease_until
    }
}

/// How much an outbox holds before it pushes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OutboxLimit {
    /// Outputs.
    pub outputs: usize,
    /// The sum of their weights, in bytes.
    pub bytes: usize,
}

impl Default for OutboxLimit {
    fn default() -> Self {
        Self {
            outputs: MAX_HELD_OUTPUTS,
            bytes: MAX_HELD_BYTES,
        }
    }
}

/// The outbox is full; here is the output back. Take no more from the guest until something was released.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The outbox is full")]
pub struct Full<T>(pub T);

/// Outputs that wait for their causes to be acked, oldest first. They leave in the order in which they came.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Outbox<T> {
    held: VecDeque<Held<T>>,
    bytes: usize,
    limit: OutboxLimit,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Held<T> {
    needs: LogOffset,
    weight: usize,
    output: T,
}

impl<T> Outbox<T> {
    /// An empty outbox that pushes back at `limit`.
    pub fn new(limit: OutboxLimit) -> Self {
        Self {
            held: VecDeque::new(),
            bytes: 0,
            limit,
        }
    }

    /// Is there room for one more output of this many bytes? An empty outbox has room for any output.
    pub fn has_room(&self, weight: usize) -> bool {
        let fits = self.bytes.saturating_add(weight) <= self.limit.bytes;
        self.held.is_empty() || (fits && self.held.len() < self.limit.outputs)
    }

    /// Holds an output of `weight` bytes until every record before `needs` is acked. One that needs less
    /// than the one before it still leaves after it.
    pub fn hold(&mut self, needs: LogOffset, weight: usize, output: T) -> Result<(), Full<T>> {
        if !self.has_room(weight) {
            return Err(Full(output));
        }
        let needs = self.held.back().map_or(needs, |before| needs.max(before.needs));
        self.held.push_back(Held {
            needs,
            weight,
            output,
        });
        self.bytes += weight;
        Ok(())
    }

    /// The next output that may leave, oldest first. `now` must have been read after `gate`, and the caller
    /// lets the output leave at once.
    pub fn poll_release(&mut self, gate: &Gate, now: Instant) -> Option<T> {
        if !gate.lets(self.held.front()?.needs, now) {
            return None;
        }
        let released = self.held.pop_front()?;
        self.bytes -= released.weight;
        Some(released.output)
    }

    /// Drops everything: the host halted, and what it holds must never leave. Says how many there were.
    pub fn discard(&mut self) -> usize {
        let discarded = self.held.len();
        self.held.clear();
        self.bytes = 0;
        discarded
    }

    /// How far the log must be acked before anything can leave; `None` when nothing is held.
    pub fn waiting_for(&self) -> Option<LogOffset> {
        self.held.front().map(|oldest| oldest.needs)
    }

    /// The oldest output.
    pub fn front(&self) -> Option<&T> {
        self.held.front().map(|oldest| &oldest.output)
    }

    /// How many outputs are held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Is nothing held?
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// How many bytes are held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_nanos(100);
    const LATER: Instant = Instant::from_nanos(200);

    fn gate(acked: u64, lease_until: Instant) -> Gate {
        Gate {
            acked: LogOffset::new(acked),
            lease_until,
        }
    }

    fn outbox(needs: &[u64]) -> Outbox<u64> {
        let mut outbox = Outbox::new(OutboxLimit {
            outputs: 3,
            bytes: 10,
        });
        needs
            .iter()
            .for_each(|n| outbox.hold(LogOffset::new(*n), 2, *n).unwrap());
        outbox
    }

    #[test]
    fn an_output_waits_until_its_last_cause_is_acked() {
        let mut held = outbox(&[5]);
        assert_eq!(held.poll_release(&gate(4, LATER), NOW), None);
        assert_eq!(held.poll_release(&gate(5, LATER), NOW), Some(5));
    }

    #[test]
    fn an_acked_output_stays_when_the_lease_is_over() {
        let mut held = outbox(&[5]);
        assert_eq!(held.poll_release(&gate(9, NOW), NOW), None);
        assert_eq!(held.len(), 1);
    }

    #[test]
    fn a_host_that_holds_its_term_alone_releases_everything() {
        let mut held = outbox(&[5, 9]);
        assert_eq!(held.poll_release(&Gate::ALONE, NOW), Some(5));
        assert_eq!(held.poll_release(&Gate::ALONE, NOW), Some(9));
        assert_eq!(held.poll_release(&Gate::ALONE, NOW), None);
    }

    #[test]
    fn a_shut_gate_lets_nothing_out_not_even_what_needs_nothing() {
        assert_eq!(outbox(&[0]).poll_release(&Gate::SHUT, Instant::ZERO), None);
    }

    #[test]
    fn outputs_leave_in_the_order_they_came_although_a_later_one_needs_less() {
        let mut held = outbox(&[7, 3]);
        assert_eq!(held.poll_release(&gate(3, LATER), NOW), None);
        assert_eq!(held.waiting_for(), Some(LogOffset::new(7)));
        assert_eq!(held.poll_release(&gate(7, LATER), NOW), Some(7));
        assert_eq!(held.poll_release(&gate(7, LATER), NOW), Some(3));
    }

    #[test]
    fn a_full_outbox_gives_the_output_back() {
        let mut held = outbox(&[1, 2, 3]);
        assert_eq!(held.hold(LogOffset::new(4), 1, 44), Err(Full(44)));
        held.poll_release(&gate(1, LATER), NOW);
        assert_eq!(held.hold(LogOffset::new(4), 7, 44), Err(Full(44)));
        assert_eq!(held.hold(LogOffset::new(4), 6, 44), Ok(()));
        assert_eq!(held.bytes(), 10);
    }

    #[test]
    fn an_empty_outbox_takes_one_output_of_any_weight() {
        assert_eq!(outbox(&[]).hold(LogOffset::ZERO, 1000, 1), Ok(()));
    }

    #[test]
    fn a_host_that_halts_forgets_what_it_held() {
        let mut held = outbox(&[1, 2]);
        assert_eq!(held.discard(), 2);
        assert_eq!(held.poll_release(&Gate::ALONE, NOW), None);
        assert_eq!(held.bytes(), 0);
    }
}
