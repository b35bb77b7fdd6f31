//! Time in a simulated world: the world's own, which nobody in it can read, and the clock of each host, which begins
//! somewhere and runs a little fast or slow.
//!
//! The machines see only the clock of their host. How far clocks may drift apart is what the protocol documents: by an
//! eighth (I7).

use std::ops::Add;
use std::time::Duration;

use lockstep_protocol::time::Instant;

/// A moment of the world: nanoseconds since its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Moment(u64);

impl Moment {
    /// After the end of every story.
    pub(crate) const NEVER: Self = Self(u64::MAX);

    /// So many nanoseconds after the beginning.
    pub(crate) const fn at(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the beginning.
    pub(crate) const fn nanos(self) -> u64 {
        self.0
    }

    /// So many nanoseconds later.
    pub(crate) const fn later(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        self.later(u64::try_from(later.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// Drift is counted in this part of a nanosecond for each nanosecond.
const PARTS: i64 = 1 << 16;

/// The fastest and the slowest clock are an eighth apart: (PARTS + 3840) / (PARTS - 3840) is just below 9/8.
pub(crate) const DRIFT_MAX: i64 = 3840;

/// What a host reads as CLOCK_BOOTTIME.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostClock {
    /// What it showed at the beginning of the world.
    begin: u64,
    /// How much it gains for each 65536 ns.
    drift: i64,
}

impl HostClock {
    /// A clock that showed `begin` at the beginning and gains `drift` of 65536.
    pub(crate) fn new(begin: u64, drift: i64) -> Self {
        assert!(
            drift.abs() <= DRIFT_MAX,
            "a clock drifts within its documented limits"
        );
        Self { begin, drift }
    }

    /// What it shows at a moment.
    pub(crate) fn shows(&self, moment: Moment) -> Instant {
        let now = moment.0;
        let gained = ((i128::from(now) * i128::from(self.drift)) >> 16) as i64;
        Instant::from_nanos(self.begin + now.wrapping_add_signed(gained))
    }

    /// The first moment at which it shows `instant` or later.
    pub(crate) fn moment(&self, instant: Instant) -> Moment {
        if instant == Instant::FOREVER {
            return Moment::NEVER;
        }
        let passed = u128::from(instant.as_nanos().saturating_sub(self.begin));
        let rate = (PARTS + self.drift) as u128;
        let mut moment = Moment((passed * PARTS as u128 / rate) as u64);
        while self.shows(moment) < instant {
            moment = moment.later(1);
        }
        moment
    }

    /// How long of the world's time passes while this clock shows `span` passing, rounded down.
    pub(crate) fn lasts(&self, span: Duration) -> u64 {
        (span.as_nanos() * PARTS as u128 / (PARTS + self.drift) as u128) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_found_for_what_a_clock_shows_is_the_first_one() {
        for drift in [-DRIFT_MAX, -7, 0, 1, DRIFT_MAX] {
            let clock = HostClock::new(5_000, drift);
            let shown = Instant::from_nanos(1_000_005_000);
            let moment = clock.moment(shown);
            assert!(clock.shows(moment) >= shown);
            assert!(clock.shows(Moment(moment.0 - 1)) < shown);
        }
    }

    #[test]
    fn an_eighth_is_the_most_that_two_clocks_are_apart() {
        let (fast, slow) = (HostClock::new(0, DRIFT_MAX), HostClock::new(0, -DRIFT_MAX));
        let hour = Moment::at(3_600_000_000_000);
        let (most, least) = (fast.shows(hour).as_nanos(), slow.shows(hour).as_nanos());
        assert!(u128::from(most) * 8 <= u128::from(least) * 9);
        assert!(u128::from(most) * 80 > u128::from(least) * 89);
    }
}
