//! How late inputs are for want of a window: a guest that computes without exits opens none, and its inputs wait.
//!
//! The recorder says when a window opens and closes; the run loop shows the figures in the status. Nothing waits longer
//! than is said here, and nothing is lost by waiting: inputs stay in the rings of their device processes.

use lockstep_protocol::ids::GuestTime;
use std::time::Duration;

/// The longest times so far, on the host's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lateness {
    /// The longest that the guest ran without opening a window.
    pub longest_run: Duration,
    /// The longest of those behind which an input had been waiting: no input waited longer.
    pub longest_wait: Duration,
    closed_at: Option<GuestTime>,
}

impl Lateness {
    /// A window is open at `now`; `waiting` says whether an input was there already. Heard once a window.
    pub fn opened(&mut self, now: GuestTime, waiting: bool) {
        let Some(closed_at) = self.closed_at.take() else {
            return;
        };
        let run = Duration::from_nanos(now.get().saturating_sub(closed_at.get()));
        self.longest_run = self.longest_run.max(run);
        if waiting {
            self.longest_wait = self.longest_wait.max(run);
        }
    }

    /// The window closes at `now`.
    pub fn closed(&mut self, now: GuestTime) {
        self.closed_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_counts_as_a_wait_only_if_an_input_was_waiting_behind_it() {
        let mut lateness = Lateness::default();
        lateness.closed(GuestTime::new(100));
        lateness.opened(GuestTime::new(150), true);
        // Still the same window: the guest slept in it, and the input came meanwhile.
        lateness.opened(GuestTime::new(900), true);
        lateness.closed(GuestTime::new(1000));
        lateness.opened(GuestTime::new(1300), false);
        assert_eq!(lateness.longest_run, Duration::from_nanos(300));
        assert_eq!(lateness.longest_wait, Duration::from_nanos(50));
    }
}
