//! How long an epoch lasts. The guest does nothing between two epochs, so what the end of one costs decides: the more pages
//! are written, the dearer is a delta, and the longer the vCPUs run for it. Outputs and inputs wait for an end; then it
//! comes as soon as the guest has had its share.
//!
//! The recorder asks it while the vCPUs run. It reads no clock.

use std::time::{Duration, Instant};

/// No epoch is shorter: what one input causes fits into it, and answers to several can go together.
const SHORTEST: Duration = Duration::from_micros(500);
/// An epoch in which nobody waits lasts so long at least: its end would help nobody.
const QUIET: Duration = Duration::from_millis(100);
/// And so long at most: what has been written by then is sent while an input waits, should one come.
const LONGEST: Duration = Duration::from_millis(400);
/// Where somebody waits, the guest runs at least as long as it stood still: it keeps half of its processors.
const RUN_SHARE: u32 = 1;
/// Where nobody waits, it keeps nine tenths.
const QUIET_SHARE: u32 = 9;

/// The lengths of the epochs of one machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// How long the vCPUs stood still before the epoch that is under way.
    stood_still: Duration,
    ended_at: Option<Instant>,
}

impl Pace {
    /// The vCPUs run again.
    pub fn begin(&mut self, now: Instant) {
        let since = self.ended_at.take().map(|at| now.saturating_duration_since(at));
        self.stood_still = since.unwrap_or_default();
    }

    /// They are to stop.
    pub fn end(&mut self, now: Instant) {
        self.ended_at = Some(now);
    }

    /// How much longer an epoch is to last that has lasted for `lasted`, if somebody waits or not.
    #[must_use]
    pub fn left(&self, lasted: Duration, is_wanted: bool) -> Duration {
        let whole = if is_wanted {
            (self.stood_still * RUN_SHARE).clamp(SHORTEST, LONGEST)
        } else {
            (self.stood_still * QUIET_SHARE).clamp(QUIET, LONGEST)
        };
        whole.saturating_sub(lasted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn after(stood_still: Duration) -> Pace {
        let mut pace = Pace::default();
        let ended = Instant::now();
        pace.end(ended);
        pace.begin(ended + stood_still);
        pace
    }

    #[test]
    fn whoever_waits_waits_as_long_as_the_guest_stood_still_and_no_longer() {
        let pace = after(7 * MS);
        assert_eq!(pace.left(2 * MS, true), 5 * MS);
        assert_eq!(pace.left(9 * MS, true), Duration::ZERO);
    }

    #[test]
    fn the_dearer_a_delta_is_the_longer_is_an_epoch_in_which_nobody_waits() {
        assert_eq!(after(MS).left(Duration::ZERO, false), QUIET);
        assert_eq!(after(30 * MS).left(Duration::ZERO, false), 270 * MS);
        assert_eq!(after(300 * MS).left(Duration::ZERO, false), LONGEST);
    }

    #[test]
    fn a_host_that_stood_still_for_seconds_makes_no_epoch_of_seconds() {
        assert_eq!(after(5000 * MS).left(Duration::ZERO, true), LONGEST);
    }
}
