//! Numbers with types: guest time and the group of writes that must be durable. Used everywhere; pure.

use core::time::Duration;

/// Guest time: since power-on, as the clock page tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(u64);

impl Time {
    /// Power-on. As an expiry it stands for "never".
    pub const ZERO: Time = Time(0);

    /// From nanoseconds.
    pub const fn from_nanos(nanos: u64) -> Self {
        Time(nanos)
    }

    /// In nanoseconds.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Later by so much; the end of time if that is not reached.
    pub fn after(self, duration: Duration) -> Self {
        Time(
            self.0
                .saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)),
        )
    }

    /// How long ago `earlier` was; nothing if it is still to come.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A group of writes that become durable together. A reply carries the group that it depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group(u64);

impl Group {
    /// Before the first group: depends on nothing.
    pub const ZERO: Group = Group(0);

    /// The group after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Group(self.0 + 1)
    }
}
