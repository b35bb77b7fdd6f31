//! Whether the vCPU runs the guest, and for how long it has: what its own thread and the watchdog share.
//!
//! The vCPU notes when it enters and leaves the guest; [`watchdog`](super::watchdog) looks, and asks it to stop where it is.
//! Noting costs two stores, so it is done for every run.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::Duration;

/// After a stop the guest runs this many times as long as it stood still: where stops are dear, so is each page that it writes
/// first after one.
const RUN_SHARE: u32 = 4;
/// No stop, however long it took, keeps what waits for the guest longer than this from entering at the next one.
const OWED_MAX: Duration = Duration::from_millis(400);

/// One vCPU's runs.
#[derive(Debug, Default)]
pub struct Pulse {
    /// How often it entered and left the guest: odd while it is in there.
    turns: AtomicU64,
    /// It shall stop where it is.
    asked: AtomicBool,
    /// Nanoseconds that a run may last before it is stopped, if the watchdog's own limit is shorter.
    owed: AtomicU64,
    /// The watchdog sleeps until the next run.
    unwatched: AtomicBool,
    /// The last one that began: a backup has one, and another when it goes live.
    watchdog: Mutex<Option<Thread>>,
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

    /// The guest stood still for so long: it is owed four times as much before it is stopped again. On a host on which a stop
    /// is dear it would come to nothing otherwise.
    pub fn owe(&self, stood_still: Duration) {
        let owed = (stood_still * RUN_SHARE).min(OWED_MAX).as_nanos();
        self.owed
            .store(u64::try_from(owed).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long it may run at least.
    pub(super) fn owed(&self) -> Duration {
        Duration::from_nanos(self.owed.load(Ordering::Relaxed))
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
        *self.watchdog.lock() = Some(std::thread::current());
    }

    fn wake_watchdog(&self) {
        if let Some(watchdog) = &*self.watchdog.lock() {
            watchdog.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_owed_four_times_what_it_stood_still_within_reason() {
        let pulse = Pulse::default();
        assert_eq!(pulse.owed(), Duration::ZERO);
        pulse.owe(Duration::from_millis(30));
        assert_eq!(pulse.owed(), Duration::from_millis(120));
        pulse.owe(Duration::from_secs(5));
        assert_eq!(pulse.owed(), OWED_MAX);
    }
}
