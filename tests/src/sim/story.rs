//! The story of a seed, line by line, for whoever has to understand why it failed. Kept only when somebody will read
//! it: a world that is not told runs several times as fast.

use std::fmt;

use super::clock::Moment;

/// Lines of a story, or none.
#[derive(Debug, Default)]
pub(crate) struct Story {
    lines: Option<Vec<String>>,
}

impl Story {
    /// A story that is told.
    pub(crate) fn told() -> Self {
        Self {
            lines: Some(Vec::new()),
        }
    }

    /// Who did what; `what` is only asked if somebody listens.
    pub(crate) fn tell(&mut self, now: Moment, who: &dyn fmt::Display, what: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            let (ms, ns) = (now.nanos() / 1_000_000, now.nanos() % 1_000_000);
            lines.push(format!("{ms:>8}.{ns:06} ms  {who:<8} {}", what()));
        }
    }

    /// The lines.
    pub(crate) fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default()
    }
}
