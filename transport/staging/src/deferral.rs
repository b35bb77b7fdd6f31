//! Orders that a device process sleeps through: nothing can leave before its ack, so one wake-up does for both.
//!
//! The vCPU thread defers, the driver thread claims when acks come; both through [`VmmEnd`](crate::VmmEnd) and
//! [`GateWriter`](crate::GateWriter). A wake-up across CPUs costs as much as an exit of the guest (measured 2026-11-25:
//! 28 us on a VM of two CPUs). The device process knows nothing of this: an order is in its ring either way.

use std::sync::atomic::{AtomicU64, Ordering};

use lockstep_protocol::ids::LogOffset;

/// The smallest log offset that an order waits for which nobody was woken for.
#[derive(Debug)]
pub(crate) struct Deferral(AtomicU64);

/// No order is deferred.
const NONE: u64 = u64::MAX;

impl Default for Deferral {
    fn default() -> Self {
        Self(AtomicU64::new(NONE))
    }
}

impl Deferral {
    /// An order in the ring waits for `needs`. Says whether it is the first since the last [`Self::claim`].
    pub(crate) fn add(&self, needs: LogOffset) -> bool {
        self.0.fetch_min(needs.get(), Ordering::SeqCst) == NONE
    }

    /// What the soonest waits for.
    pub(crate) fn soonest(&self) -> Option<LogOffset> {
        Some(self.0.load(Ordering::SeqCst))
            .filter(|soonest| *soonest != NONE)
            .map(LogOffset::new)
    }

    /// Whoever calls this wakes the device process right after it, which then finds every order deferred before.
    pub(crate) fn claim(&self) {
        self.0.store(NONE, Ordering::SeqCst);
    }
}
