//! The vCPUs of a VM that has several: a thread for each, which runs freely for one epoch at a time.
//!
//! The machine lets them go with [`Cores::run`] and has them all back, between two instructions each, when that returns.
//! While they run, each serves its own exits by the bus of the epoch. What an epoch is, and when it is over, others say.

use super::{Bus, Stop, Vcpu, VcpuError, watchdog};
use nix::sys::pthread::pthread_kill;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A signal that comes just before KVM_RUN is lost: it is sent again after so long.
const SIGNAL_AGAIN: Duration = Duration::from_micros(500);

/// What the vCPUs share in one epoch.
pub trait Epoch: Send + Sync + 'static {
    /// Whether the vCPUs are to stop.
    fn is_over(&self) -> bool;
}

/// The vCPUs and their threads.
#[derive(Debug)]
pub struct Cores<E> {
    vcpus: Vec<Arc<Mutex<Vcpu>>>,
    gate: Arc<Gate<E>>,
    /// Empty until the first epoch.
    threads: Vec<JoinHandle<()>>,
}

/// How an epoch ended for a vCPU that did not just stop when it was over.
#[derive(Debug)]
pub enum Ended {
    /// It cannot run on.
    Fault {
        /// Where the guest was.
        rip: u64,
    },
    /// KVM cannot run it.
    Error(VcpuError),
}

/// Where the threads wait between two epochs.
#[derive(Debug)]
struct Gate<E> {
    turn: Mutex<Turn<E>>,
    changed: Condvar,
    /// There will be no other epoch, and the one that is under way is over.
    closed: AtomicBool,
}

#[derive(Debug)]
struct Turn<E> {
    /// Counts epochs, so that no thread runs one twice.
    number: u64,
    /// The one that is under way.
    epoch: Option<Arc<E>>,
    /// Threads that have not come back from it.
    running: usize,
    ended: Option<Ended>,
}

impl<E: Epoch> Cores<E>
where
    for<'a> &'a E: Bus,
{
    /// Takes over vCPUs whose registers are set, in the order of their numbers.
    #[must_use]
    pub fn new(vcpus: Vec<Vcpu>) -> Self {
        Self {
            vcpus: vcpus.into_iter().map(|vcpu| Arc::new(Mutex::new(vcpu))).collect(),
            gate: Arc::new(Gate {
                turn: Mutex::new(Turn {
                    number: 0,
                    epoch: None,
                    running: 0,
                    ended: None,
                }),
                changed: Condvar::new(),
                closed: AtomicBool::new(false),
            }),
            threads: Vec::new(),
        }
    }

    /// The vCPUs, which stand still.
    pub fn stopped(&self) -> impl Iterator<Item = MutexGuard<'_, Vcpu>> {
        self.vcpus.iter().map(|vcpu| lock(vcpu))
    }

    /// Lets all of them run in `epoch`; `meanwhile` returns when it should be over, having said so to the epoch. Returns
    /// when all stand still and nobody but the caller holds the epoch any more.
    ///
    /// # Errors
    /// When this process has no more threads.
    pub fn run(&mut self, epoch: &Arc<E>, meanwhile: impl FnOnce()) -> io::Result<Option<Ended>> {
        if self.threads.is_empty() {
            self.start_threads()?;
        }
        let mut turn = lock(&self.gate.turn);
        turn.number += 1;
        turn.epoch = Some(Arc::clone(epoch));
        turn.running = self.vcpus.len();
        drop(turn);
        self.gate.changed.notify_all();
        meanwhile();
        Ok(self.gather())
    }

    /// Waits until all stand still.
    fn gather(&self) -> Option<Ended> {
        let mut turn = lock(&self.gate.turn);
        while turn.running > 0 {
            assert!(
                !self.threads.iter().any(JoinHandle::is_finished),
                "the thread of a vCPU has panicked, as was reported"
            );
            self.threads.iter().for_each(interrupt);
            let waited = self.gate.changed.wait_timeout(turn, SIGNAL_AGAIN);
            (turn, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        turn.epoch = None;
        turn.ended.take()
    }

    fn start_threads(&mut self) -> io::Result<()> {
        watchdog::handle_stop_signal()?;
        for (number, vcpu) in self.vcpus.iter().enumerate() {
            let (vcpu, gate) = (Arc::clone(vcpu), Arc::clone(&self.gate));
            let thread = thread::Builder::new().name(format!("vcpu-{number}"));
            self.threads.push(thread.spawn(move || gate.serve(&vcpu))?);
        }
        Ok(())
    }
}

impl<E> Drop for Cores<E> {
    fn drop(&mut self) {
        // Under the lock: whoever is about to wait has seen it, or is woken.
        let turn = lock(&self.gate.turn);
        self.gate.closed.store(true, Ordering::Release);
        drop(turn);
        self.gate.changed.notify_all();
        for thread in self.threads.drain(..) {
            // It stands at the gate, unless this host fails in the middle of an epoch.
            while !thread.is_finished() {
                interrupt(&thread);
                thread::sleep(SIGNAL_AGAIN);
            }
            // A panic of it has been reported.
            let _ = thread.join();
        }
    }
}

impl<E: Epoch> Gate<E>
where
    for<'a> &'a E: Bus,
{
    /// A vCPU's thread: one epoch after the other.
    fn serve(&self, vcpu: &Mutex<Vcpu>) {
        let mut done = 0;
        while let Some((number, epoch)) = self.next(done) {
            done = number;
            let ended = self.run_freely(&mut lock(vcpu), &epoch);
            drop(epoch);
            let mut turn = lock(&self.turn);
            turn.running -= 1;
            turn.ended = turn.ended.take().or(ended);
            drop(turn);
            self.changed.notify_all();
        }
    }

    /// The epoch after number `done`, when it begins; `None` when there will be none.
    fn next(&self, done: u64) -> Option<(u64, Arc<E>)> {
        let mut turn = lock(&self.turn);
        loop {
            if self.is_closed() {
                return None;
            }
            if turn.number > done
                && let Some(epoch) = &turn.epoch
            {
                return Some((turn.number, Arc::clone(epoch)));
            }
            turn = self.changed.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Runs one vCPU until the epoch is over, and leaves it between two instructions.
    fn run_freely(&self, vcpu: &mut Vcpu, epoch: &Arc<E>) -> Option<Ended> {
        let mut bus = &**epoch;
        match vcpu.run_until(&mut bus, || epoch.is_over() || self.is_closed()) {
            Ok(Stop::Stalled) => None,
            Ok(_) => Some(Ended::Fault { rip: vcpu.rip() }),
            Err(error) => Some(Ended::Error(error)),
        }
    }
}

/// Ends a vCPU's KVM_RUN. A thread that is back already ignores it.
fn interrupt(thread: &JoinHandle<()>) {
    let _ = pthread_kill(thread.as_pthread_t(), watchdog::STOP_SIGNAL);
}

/// Nothing is left half done under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
