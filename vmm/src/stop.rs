//! Whether somebody asked this process to stop. Set by a signal or the control socket, looked at in every window.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A request to stop, shared between threads.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    asked: AtomicBool,
    heeded: AtomicBool,
}

impl Stop {
    /// Asks the process to stop. Before the guest runs nobody looks, and there is nothing to leave in good order: the
    /// process ends at once, and its device processes with it.
    pub fn ask(&self) {
        self.0.asked.store(true, Ordering::Release);
        if !self.0.heeded.load(Ordering::Acquire) {
            std::process::exit(0);
        }
    }

    /// From now on somebody looks.
    pub fn heed(&self) {
        self.0.heeded.store(true, Ordering::Release);
    }

    /// Whether it is time.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.0.asked.load(Ordering::Acquire)
    }
}
