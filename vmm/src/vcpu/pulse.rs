//! Whether the vCPU runs the guest, and for how long it has: what its own thread and the watchdog share.
//!
//! The vCPU notes when it enters and leaves the guest; [`watchdog`](super::watchdog) looks, and asks it to stop where it is.
//! Noting costs two stores, so it is done for every run.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Thread;

/// One vCPU's runs.
#[derive(Debug, Default)]
pub struct Pulse {
    /// How often it entered and left the guest: odd while it is in there.
    turns: AtomicU64,
    /// It shall stop where it is.
    asked: AtomicBool,
    /// The watchdog sleeps until the next run.
    unwatched: AtomicBool,
    watchdog: OnceLock<Thread>,
}

impl Pulse {
    /// The vCPU enters the guest.
    pub(super) fn enter(&self) {
        self.asked.store(false, Ordering::Relaxed);
        self.turns.fetch_add(1, Ordering::SeqCst);
        if self.unwatched.load(Ordering::SeqCst) && self.unwatched.swap(false, Ordering::SeqCst) {
            self.wake_watchdog();
        }
    }

    /// The vCPU has left the guest.
    pub(super) fn leave(&self) {
        self.turns.fetch_add(1, Ordering::Release);
    }

    /// Whether it was asked to stop where it is.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// The run that is under way, if one is.
    pub(super) fn run(&self) -> Option<u64> {
        let turns = self.turns.load(Ordering::SeqCst);
        (turns % 2 == 1).then_some(turns)
    }

    /// Asks it to stop where it is; a signal has to follow.
    pub(super) fn ask(&self) {
        self.asked.store(true, Ordering::Release);
    }

    /// The watchdog will sleep until the next run, unless one has begun: true if it may.
    pub(super) fn stop_watching(&self) -> bool {
        self.unwatched.store(true, Ordering::SeqCst);
        self.run().is_none()
    }

    /// Whether the watchdog still has reason to sleep.
    pub(super) fn is_unwatched(&self) -> bool {
        self.unwatched.load(Ordering::SeqCst)
    }

    /// The watchdog watches, whether a run begins or not.
    pub(super) fn watch(&self) {
        self.unwatched.store(false, Ordering::SeqCst);
    }

    /// The calling thread is the watchdog.
    pub(super) fn adopt_watchdog(&self) {
        // A pulse has one watchdog in its life.
        let _ = self.watchdog.set(std::thread::current());
    }

    fn wake_watchdog(&self) {
        if let Some(watchdog) = self.watchdog.get() {
            watchdog.unpark();
        }
    }
}
