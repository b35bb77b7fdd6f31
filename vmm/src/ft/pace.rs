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
/// Where nobody waits, the guest keeps nine tenths of its processors.
const QUIET_SHARE: u32 = 9;
/// Where somebody waits it keeps half of them, but by that it is given ahead: after a quiet time, a few round trips need no
/// more than their deltas.
const CREDIT: Duration = Duration::from_millis(400);

/// The lengths of the epochs of one machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// How long the vCPUs stood still before the epoch that is under way.
    stood_still: Duration,
    /// How much longer they have run than stood still.
    ahead: Duration,
    /// How much longer they have stood still than run.
    behind: Duration,
    began_at: Option<Instant>,
    ended_at: Option<Instant>,
}

impl Pace {
    /// The vCPUs run again.
    pub fn begin(&mut self, now: Instant) {
        let since = self.ended_at.take().map(|at| now.saturating_duration_since(at));
        self.stood_still = since.unwrap_or_default();
        let debt = self.behind + self.stood_still;
        self.behind = debt.saturating_sub(self.ahead).min(LONGEST);
        self.ahead = self.ahead.saturating_sub(debt);
        self.began_at = Some(now);
    }

    /// They are to stop.
    pub fn end(&mut self, now: Instant) {
        let since = self.began_at.take().map(|at| now.saturating_duration_since(at));
        let credit = self.ahead + since.unwrap_or_default();
        self.ahead = credit.saturating_sub(self.behind).min(CREDIT);
        self.behind = self.behind.saturating_sub(credit);
        self.ended_at = Some(now);
    }

    /// How much longer an epoch is to last that has lasted for `lasted`, if somebody waits or not.
    #[must_use]
    pub fn left(&self, lasted: Duration, is_wanted: bool) -> Duration {
        let whole = if is_wanted {
            self.behind.max(SHORTEST)
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

    /// After epochs that lasted for the first and were followed by a standstill of the second.
    fn after(epochs: &[(Duration, Duration)]) -> Pace {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        pace.begin(now);
        for (lasted, stood_still) in epochs {
            now += *lasted;
            pace.end(now);
            now += *stood_still;
            pace.begin(now);
        }
        pace
    }

    #[test]
    fn a_guest_whose_clients_never_rest_keeps_half_of_its_processors() {
        let pace = after(&[(MS, 30 * MS), (29 * MS, 30 * MS)]);
        assert_eq!(pace.left(Duration::ZERO, true), 30 * MS);
        assert_eq!(pace.left(29 * MS, true), MS);
        assert_eq!(pace.left(31 * MS, true), Duration::ZERO);
    }

    #[test]
    fn after_a_quiet_time_a_client_waits_for_deltas_alone() {
        let quiet = (200 * MS, 30 * MS);
        let pace = after(&[quiet, (MS, 30 * MS), (MS, 30 * MS)]);
        assert_eq!(pace.left(Duration::ZERO, true), SHORTEST);
        let pace = after(&[quiet, (MS, 90 * MS), (MS, 90 * MS)]);
        assert_eq!(pace.left(Duration::ZERO, true), 8 * MS);
    }

    #[test]
    fn the_dearer_a_delta_is_the_longer_is_an_epoch_in_which_nobody_waits() {
        let left = |stood_still| after(&[(MS, stood_still)]).left(Duration::ZERO, false);
        assert_eq!(left(MS), QUIET);
        assert_eq!(left(30 * MS), 270 * MS);
        assert_eq!(left(300 * MS), LONGEST);
    }

    #[test]
    fn a_host_that_stood_still_for_seconds_makes_no_epoch_of_seconds() {
        let pace = after(&[(MS, 5000 * MS)]);
        assert_eq!(pace.left(Duration::ZERO, true), LONGEST);
    }
}
