//! What a person sees while the demo or the bench runs: one line that lives on a terminal, plain lines elsewhere. It goes
//! to standard error, so that standard output carries the result alone.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// The live line and the events above it.
pub(crate) struct Progress {
    start: Instant,
    bar: Option<ProgressBar>,
    printed: Option<Instant>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg}").expect("the template is valid");
            ProgressBar::new_spinner().with_style(style)
        });
        Self {
            start: Instant::now(),
            bar,
            printed: None,
        }
    }

    /// Something happened: a line that stays.
    pub(crate) fn event(&self, text: &str) {
        let line = format!("{:7.3} s  {text}", self.start.elapsed().as_secs_f64());
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    /// How it stands: replaces what was said last.
    pub(crate) fn now(&mut self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
            bar.tick();
            return;
        }
        if self
            .printed
            .is_none_or(|printed| printed.elapsed() >= PLAIN_INTERVAL)
        {
            self.printed = Some(Instant::now());
            self.event(text);
        }
    }

    /// Takes the live line away.
    pub(crate) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// How often a state is printed where lines cannot be replaced.
const PLAIN_INTERVAL: Duration = Duration::from_secs(1);
