//! Guest time as a live host logs it: from where it stood when this host took it over, as fast as the host's own clock,
//! and steered towards the host's wall time where the guest knows wall time.
//!
//! The recorder asks it in windows; a replay never does. It never runs backwards: an error is taken out by running a
//! little faster or slower.

use crate::monitor::unix_ns;
use lockstep_protocol::ids::GuestTime;
use std::time::{Duration, Instant};

/// How far guest time may run off the host's own rate to find back to the wall's: 10 ms a second. Time-outs in the guest
/// do not notice that, and a takeover's error of some 100 ms is gone after some 10 s.
const STEER_SHARE: i64 = 100;
/// How often to look at the wall.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// The clock of a live host.
#[derive(Clone, Copy, Debug)]
pub struct HostClock {
    base: GuestTime,
    since: Instant,
    steering: Option<Steering>,
}

/// How far the guest's time was moved off the host's own rate, in ns.
#[derive(Clone, Copy, Debug, Default)]
struct Steering {
    moved: i64,
    looked_at: Duration,
}

impl HostClock {
    /// Guest time was `base` when the host's clock stood `ago` before now.
    #[must_use]
    pub fn resumed(base: GuestTime, ago: Duration) -> Self {
        let now = Instant::now();
        Self {
            base,
            since: now.checked_sub(ago).unwrap_or(now),
            steering: None,
        }
    }

    /// Guest time counts from nothing now.
    #[must_use]
    pub fn from_zero() -> Self {
        Self::resumed(GuestTime::ZERO, Duration::ZERO)
    }

    /// Guest time is this host's wall time.
    #[must_use]
    pub fn of_wall() -> Self {
        Self::resumed(GuestTime::new(unix_ns()), Duration::ZERO).steered_by_wall()
    }

    /// From now on it finds back to this host's wall time, whatever happens to either.
    #[must_use]
    pub fn steered_by_wall(self) -> Self {
        Self {
            steering: Some(Steering::default()),
            ..self
        }
    }

    /// Guest time now.
    pub fn now(&mut self) -> GuestTime {
        let passed = self.since.elapsed();
        let own = self.base.get().saturating_add(nanos(passed));
        let moved = match &mut self.steering {
            None => 0,
            Some(steering) => steering.moved(own, passed, unix_ns),
        };
        GuestTime::new(own.saturating_add_signed(moved))
    }
}

impl Steering {
    /// How far to move off `own`, which the host's clock says after `passed`. Looks at the wall if it is time to.
    fn moved(&mut self, own: u64, passed: Duration, wall: impl FnOnce() -> u64) -> i64 {
        let since = passed.saturating_sub(self.looked_at);
        if since >= LOOK_EVERY {
            self.looked_at = passed;
            let error = i128::from(wall()) - i128::from(own) - i128::from(self.moved);
            let most = i64::try_from(nanos(since)).unwrap_or(i64::MAX) / STEER_SHARE;
            self.moved += i64::try_from(error).unwrap_or(most).clamp(-most, most);
        }
        self.moved
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_795_451_543_000_000_000;
    const MS: u64 = 1_000_000;

    /// Guest time after each ms of a second, with a wall that is `ahead` of it at the start.
    fn second(ahead: i64) -> Vec<u64> {
        let mut steering = Steering::default();
        (1..=1000_u64)
            .map(|ms| {
                let own = START + ms * MS;
                let wall = own.saturating_add_signed(ahead);
                own.saturating_add_signed(steering.moved(own, Duration::from_millis(ms), || wall))
            })
            .collect()
    }

    #[test]
    fn a_guest_that_is_ahead_of_the_wall_slows_down_and_never_runs_backwards() {
        let times = second(-i64::try_from(100 * MS).unwrap());
        assert!(times.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(START + 1000 * MS - times[999], 10 * MS);
    }

    #[test]
    fn a_guest_that_is_behind_the_wall_meets_it_and_stays_with_it() {
        let times = second(i64::try_from(5 * MS).unwrap());
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] <= MS + MS / 100));
        assert_eq!(times[999], START + 1005 * MS);
    }

    #[test]
    fn a_clock_that_was_taken_over_goes_on_from_where_it_stood() {
        let mut clock = HostClock::resumed(GuestTime::new(START), Duration::from_millis(150));
        let first = clock.now();
        assert!(first.get() >= START + 150 * MS);
        assert!(clock.now() >= first);
    }
}
