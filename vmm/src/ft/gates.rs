//! What the driver thread of a primary tells device processes: how far the log is acked, and until when outputs may leave.
//!
//! Called for every ack and every echo of a session. It decides nothing but I13's last part: a host that was alone may hold
//! outputs that need no record, and a spare that has no record of the log could not go on after them. So the lease is kept
//! here until the first ack.

use lockstep_protocol::ids::LogOffset;
use lockstep_protocol::time::Instant;
use lockstep_staging::gate::GateWriter;

/// The gates of all device processes during one session.
pub(super) struct Gates {
    writers: Vec<GateWriter>,
    lease: Lease,
}

/// Where the lease is.
enum Lease {
    /// Nothing was acked: here, as far as it has come.
    HeldBack(Option<Instant>),
    /// Device processes are told.
    Published,
}

impl Gates {
    /// The gates of a primary whose log has not begun.
    pub(super) fn of_primary(writers: Vec<GateWriter>) -> Self {
        Self {
            writers,
            lease: Lease::HeldBack(None),
        }
    }

    /// The backup holds every record before `upto`, and one at least.
    pub(super) fn publish_acked(&mut self, upto: LogOffset) {
        self.writers.iter().for_each(|gate| gate.publish_acked(upto));
        if let Lease::HeldBack(until) = std::mem::replace(&mut self.lease, Lease::Published) {
            until.into_iter().for_each(|until| self.publish_lease(until));
        }
    }

    /// Outputs may leave until then.
    pub(super) fn publish_lease(&mut self, until: Instant) {
        match &mut self.lease {
            Lease::HeldBack(newest) => *newest = Some(until),
            Lease::Published => self.writers.iter().for_each(|gate| gate.publish_lease(until)),
        }
    }
}
