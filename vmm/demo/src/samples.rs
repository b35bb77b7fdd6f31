//! How the replies came over time: what the rates before and after the fault, and the live line, are made of.

use std::time::{Duration, Instant};

/// How many replies there were when.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<(Instant, u64)>);

impl Samples {
    /// So many replies there were at that moment.
    pub(crate) fn push(&mut self, at: Instant, replies: u64) {
        self.0.push((at, replies));
    }

    /// The latest sample.
    pub(crate) fn last(&self) -> Option<(Instant, u64)> {
        self.0.last().copied()
    }

    /// Whether it is time to look at a host, too.
    pub(crate) fn is_round(&self) -> bool {
        self.0.len().is_multiple_of(SAMPLES_A_ROUND)
    }

    /// Replies a second, lately.
    pub(crate) fn rate(&self) -> f64 {
        let lately = self.0.len().saturating_sub(SAMPLES_A_ROUND * 2);
        match (self.0.get(lately), self.0.last()) {
            (Some((from, before)), Some((to, after))) if to > from => {
                (after - before) as f64 / to.duration_since(*from).as_secs_f64()
            }
            _ => 0.0,
        }
    }

    /// Replies from the first sample at or after `since` to `end`, and how long that was.
    pub(crate) fn since(&self, since: Option<Instant>, end: Option<(Instant, u64)>) -> (u64, Duration) {
        let first = self
            .0
            .iter()
            .find(|(at, _)| since.is_none_or(|since| *at >= since));
        match (first, end) {
            (Some((from, before)), Some((to, after))) => (after - before, to.duration_since(*from)),
            _ => (0, Duration::ZERO),
        }
    }
}

const SAMPLES_A_ROUND: usize = 10;
