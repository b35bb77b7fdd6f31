//! What the log says of those who knocked and were sent away: enough for a person who looks for a wrong certificate, and no more
//! than a line now and then, however often strangers knock. Each door has one.

use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::failure::whole_sentence;
use crate::link::PairError;

/// How long no other is told of in a warning.
const QUIET: Duration = Duration::from_secs(10);

/// Those who knocked at one door.
#[derive(Debug, Default)]
pub(crate) struct Knocks {
    quiet_until: Option<Instant>,
    untold: u64,
}

impl Knocks {
    /// One was sent away.
    pub(crate) fn tell(&mut self, error: &PairError) {
        let reason = whole_sentence(error);
        // Anybody can begin a handshake and leave it at that: no place in the log for a person to look at.
        if error.may_pass() {
            return debug!(error = reason, "Somebody knocked and did not stay");
        }
        match self.turn(Instant::now()) {
            Some(untold) => warn!(error = reason, untold, "Somebody knocked and was sent away"),
            None => debug!(error = reason, "Somebody knocked and was sent away"),
        }
    }

    /// May this one be told of? If so, how many were not since the last one.
    fn turn(&mut self, now: Instant) -> Option<u64> {
        if self.quiet_until.is_some_and(|until| now < until) {
            self.untold += 1;
            return None;
        }
        self.quiet_until = Some(now + QUIET);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_who_is_sent_away_is_told_of_and_the_next_ones_are_counted_until_it_was_quiet() {
        let mut knocks = Knocks::default();
        let begin = Instant::now();
        assert_eq!(knocks.turn(begin), Some(0));
        assert_eq!(knocks.turn(begin), None);
        assert_eq!(knocks.turn(begin + QUIET / 2), None);
        assert_eq!(knocks.turn(begin + QUIET), Some(2));
        assert_eq!(knocks.turn(begin + QUIET), None);
    }
}
