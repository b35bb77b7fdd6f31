//! Stops a guest that has run for too long without an exit, where it is, so that what waits for it can enter.
//!
//! The run loop of a live host starts one on its vCPU's thread. It decides nothing: the run loop looks whether anything
//! waits, and lets the guest go on if not. While the guest sleeps, so does it.

use super::pulse::Pulse;
use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::Signal;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use vmm_sys_util::signal::register_signal_handler;

/// Ends KVM_RUN; nobody else in this process uses it.
pub(super) const STOP_SIGNAL: Signal = Signal::SIGUSR1;
/// So many looks at a guest that sleeps, then it is not looked at any more until it runs again: waking the watchdog costs
/// the vCPU something.
const SLEEPING_LOOKS: u32 = 32;

/// Watches until it is dropped. Must be dropped on the thread that started it, or before that ends.
#[derive(Debug)]
pub struct Watchdog {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Watches the vCPU that the calling thread runs: a run that lasts longer than `limit`, and than what the guest is owed
    /// ([`Pulse::owe`]), is stopped, at the latest half of `limit` later.
    ///
    /// # Errors
    /// When there is no thread or signal to be had.
    pub fn start(pulse: Arc<Pulse>, limit: Duration) -> io::Result<Self> {
        handle_stop_signal()?;
        let over = Arc::new(AtomicBool::new(false));
        let (vcpu, ends) = (pthread_self(), Arc::clone(&over));
        let thread = thread::Builder::new().name("watchdog".into()).spawn(move || {
            pulse.adopt_watchdog();
            watch(&pulse, limit, vcpu, &ends);
        })?;
        Ok(Self {
            over,
            thread: Some(thread),
        })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It ends within a look, and a panic of it has been reported.
            let _ = thread.join();
        }
    }
}

fn watch(pulse: &Pulse, limit: Duration, vcpu: Pthread, over: &AtomicBool) {
    let mut seen: Option<(u64, Instant)> = None;
    let mut sleeping = 0;
    while !over.load(Ordering::Acquire) {
        match (pulse.run(), seen) {
            (None, _) => {
                (seen, sleeping) = (None, sleeping + 1);
                if sleeping >= SLEEPING_LOOKS && pulse.stop_watching() {
                    while pulse.is_unwatched() && !over.load(Ordering::Acquire) {
                        thread::park();
                    }
                }
                pulse.watch();
            }
            (Some(run), Some((before, since))) if run == before => {
                if since.elapsed() >= limit.max(pulse.owed()) {
                    pulse.ask();
                    // A signal that comes before KVM_RUN is lost; the next look repeats it.
                    let _ = pthread_kill(vcpu, STOP_SIGNAL);
                }
            }
            (Some(run), _) => (seen, sleeping) = (Some((run, Instant::now())), 0),
        }
        thread::park_timeout(limit / 2);
    }
}

/// From now on the signal ends KVM_RUN, and nothing else.
pub(super) fn handle_stop_signal() -> io::Result<()> {
    let handled = register_signal_handler(STOP_SIGNAL as i32, interrupted);
    handled.map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// The signal has done its work when it is delivered.
extern "C" fn interrupted(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(2);

    fn wait_until(holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(Instant::now() < deadline, "it never came to that");
            thread::yield_now();
        }
    }

    #[test]
    fn the_watchdog_of_a_host_that_went_live_wakes_up_for_a_guest_that_slept() {
        let pulse = Arc::new(Pulse::default());
        drop(Watchdog::start(Arc::clone(&pulse), LIMIT).unwrap());
        let _second = Watchdog::start(Arc::clone(&pulse), LIMIT).unwrap();
        wait_until(|| pulse.is_unwatched());
        pulse.enter();
        wait_until(|| pulse.is_asked());
        pulse.leave();
    }
}
