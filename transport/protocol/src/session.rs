//! What both roles share about their peer: the agreed timing, whether a message is of this term, how long the
//! peer has been silent, and the ways to lose it. It never decides what a lost peer means: `takeover` does.

use crate::ids::Term;
use crate::limits::{LEASE_MARGIN_DIVISOR, MAX_TIMEOUT, MIN_HEARTBEAT};
use crate::time::{Duration, Instant};

/// The pair's timing, equal on both hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// How often the primary says that it lives.
    pub heartbeat: Duration,
    /// How long a peer may be silent before it is lost.
    pub timeout: Duration,
    /// How long after an echoed heartbeat was sent the primary may release outputs.
    pub lease: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(20),
            timeout: Duration::from_millis(120),
            lease: Duration::from_millis(100),
        }
    }
}

/// Why a timing cannot work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTiming {
    /// Heartbeats would be the load.
    #[error("The heartbeat interval is {0:?}, it must be at least {MIN_HEARTBEAT:?}")]
    HeartbeatTooShort(Duration),
    /// One lost heartbeat would end the lease.
    #[error("The lease is {lease:?}, it must be more than two heartbeat intervals of {heartbeat:?}")]
    LeaseTooShort {
        /// The lease.
        lease: Duration,
        /// The heartbeat interval.
        heartbeat: Duration,
    },
    /// A primary might still write when its backup suspects it.
    #[error("The lease is {lease:?}, it must be shorter than the time-out of {timeout:?}")]
    LeaseOutlivesTimeout {
        /// The lease.
        lease: Duration,
        /// The time-out.
        timeout: Duration,
    },
    /// Nobody waits that long.
    #[error("The time-out is {0:?}, it must be at most {MAX_TIMEOUT:?}")]
    TimeoutTooLong(Duration),
}

impl Timing {
    /// Can a pair live with this timing?
    pub fn check(&self) -> Result<(), BadTiming> {
        let Self {
            heartbeat,
            timeout,
            lease,
        } = *self;
        if heartbeat < MIN_HEARTBEAT {
            return Err(BadTiming::HeartbeatTooShort(heartbeat));
        }
        if lease <= heartbeat.saturating_mul(2) {
            return Err(BadTiming::LeaseTooShort { lease, heartbeat });
        }
        if lease >= timeout {
            return Err(BadTiming::LeaseOutlivesTimeout { lease, timeout });
        }
        if timeout > MAX_TIMEOUT {
            return Err(BadTiming::TimeoutTooLong(timeout));
        }
        Ok(())
    }

    /// When the lease of a primary last heard at `heard` is over on every clock that drifts by less than the
    /// margin (I7).
    pub fn lease_over(&self, heard: Instant) -> Instant {
        heard + self.lease + self.lease / LEASE_MARGIN_DIVISOR
    }
}

/// Why a peer says goodbye.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Parting {
    /// The guest switched its machine off: nothing is left to protect.
    PowerOff,
    /// An operator asked it to stop.
    Stopped,
    /// It cannot go on.
    Failed,
    /// Its own disk image does not follow any more.
    DiskFailed,
    /// One of its device processes is gone.
    DeviceFailed,
}

/// How a peer was lost. Within a term a lost peer never comes back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerLost {
    /// Nothing was heard for the time-out.
    #[error("The other host was silent for {0:?}")]
    Silent(Duration),
    /// It said goodbye.
    #[error("The other host left: {}", parting(*.0))]
    Left(Parting),
    /// The connection to it broke.
    #[error("The connection to the other host broke: {0}")]
    Disconnected(String),
    /// Its machine was another one for too long.
    #[error("The other host's copy of the VM had diverged and was not healed for {0:?}")]
    Unhealed(Duration),
    /// It said what an honest peer cannot say.
    #[error("The other host broke the protocol: {0}")]
    Misbehaved(String),
}

fn parting(why: Parting) -> &'static str {
    match why {
        Parting::PowerOff => "the guest switched its machine off",
        Parting::Stopped => "it was asked to stop",
        Parting::Failed => "it cannot go on",
        Parting::DiskFailed => "its own disk failed",
        Parting::DeviceFailed => "one of its device processes is gone",
    }
}

/// A message of a term that has not come here yet: an honest peer in a session of this term has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("A message of term {theirs} in a session of term {ours}")]
pub struct NewerTerm {
    /// The session's term.
    pub ours: Term,
    /// The message's term.
    pub theirs: Term,
}

/// Is a message of this term or a late one?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    Current,
    Stale,
}

pub(crate) fn age(ours: Term, theirs: Term) -> Result<Age, NewerTerm> {
    match theirs.cmp(&ours) {
        std::cmp::Ordering::Less => Ok(Age::Stale),
        std::cmp::Ordering::Equal => Ok(Age::Current),
        std::cmp::Ordering::Greater => Err(NewerTerm { ours, theirs }),
    }
}

/// When the peer was last heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Hearing {
    heard: Instant,
    timeout: Duration,
}

impl Hearing {
    pub(crate) fn new(timing: &Timing, now: Instant) -> Self {
        Self {
            heard: now,
            timeout: timing.timeout,
        }
    }

    /// Any message counts. A clock read that comes late never takes hearing back.
    pub(crate) fn note(&mut self, now: Instant) {
        self.heard = self.heard.max(now);
    }

    pub(crate) fn heard(&self) -> Instant {
        self.heard
    }

    /// When silence becomes loss.
    pub(crate) fn deadline(&self) -> Instant {
        self.heard + self.timeout
    }

    pub(crate) fn verdict(&self, now: Instant) -> Option<PeerLost> {
        (now >= self.deadline()).then(|| PeerLost::Silent(now.saturating_since(self.heard)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(heartbeat: u64, timeout: u64, lease: u64) -> Timing {
        let ms = Duration::from_millis;
        Timing {
            heartbeat: ms(heartbeat),
            timeout: ms(timeout),
            lease: ms(lease),
        }
    }

    #[test]
    fn the_default_timing_works() {
        assert_eq!(Timing::default().check(), Ok(()));
    }

    #[test]
    fn a_lease_as_long_as_the_timeout_is_refused() {
        assert!(matches!(
            timing(20, 100, 100).check(),
            Err(BadTiming::LeaseOutlivesTimeout { .. })
        ));
    }

    #[test]
    fn a_lease_of_two_heartbeats_is_refused() {
        assert!(matches!(
            timing(50, 120, 100).check(),
            Err(BadTiming::LeaseTooShort { .. })
        ));
    }

    #[test]
    fn no_heartbeat_and_an_endless_timeout_are_refused() {
        assert!(matches!(
            timing(0, 120, 100).check(),
            Err(BadTiming::HeartbeatTooShort(_))
        ));
        assert!(matches!(
            timing(20, 600_000, 100).check(),
            Err(BadTiming::TimeoutTooLong(_))
        ));
    }

    #[test]
    fn a_backup_waits_an_eighth_longer_than_the_lease() {
        assert_eq!(
            Timing::default().lease_over(Instant::ZERO),
            Instant::ZERO + Duration::from_micros(112_500)
        );
    }
}
