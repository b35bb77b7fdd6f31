//! Time as the machines see it: nanoseconds on the caller's clock, always an argument. The edge reads
//! CLOCK_BOOTTIME, which counts suspended time too; the simulator makes its own. Nothing here reads a clock.

use std::fmt;
use std::ops::Add;
pub use std::time::Duration;

/// A moment on the caller's clock. Moments of two hosts are never compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// Before everything: a lease that was never granted ends here.
    pub const ZERO: Self = Self(0);
    /// After everything: the lease of a host that holds its term alone ends here.
    pub const FOREVER: Self = Self(u64::MAX);

    /// The moment `nanos` nanoseconds after the clock's own beginning.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's own beginning.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; nothing if it is not after it.
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// Ends at [`Instant::FOREVER`] instead of wrapping.
    fn add(self, later: Duration) -> Self {
        let nanos = u64::try_from(later.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}s", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forever_and_a_day_is_forever() {
        assert_eq!(Instant::FOREVER + Duration::from_secs(86_400), Instant::FOREVER);
        assert_eq!(Instant::ZERO + Duration::MAX, Instant::FOREVER);
    }

    #[test]
    fn nothing_passed_since_a_moment_that_is_yet_to_come() {
        assert_eq!(
            Instant::from_nanos(3).saturating_since(Instant::from_nanos(5)),
            Duration::ZERO
        );
    }
}
