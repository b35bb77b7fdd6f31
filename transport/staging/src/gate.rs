//! The gate: how the VMM tells a device process, at any moment and without a message, which outputs may leave.
//!
//! The VMM's driver thread writes through [`GateWriter`]; the device process reads through its end at the last
//! moment before an output leaves. This file carries the facts; the rule that is made of them is `Outbox` in the
//! protocol crate. The doorbell is rung only when the device sleeps and the change lets something out.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use lockstep_protocol::ids::LogOffset;
use lockstep_protocol::outbox::Gate;
use lockstep_protocol::time::Instant;
use rustix::time::{ClockId, clock_gettime};

use crate::deferral::Deferral;
use crate::doorbell::Doorbell;
use crate::memory::{SharedMemory, Which, word};
use crate::message::OrderBytes;
use crate::ring::entries_of;

/// What the VMM wants the device process to do with the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Mode {
    /// A backup, or not yet decided: take nothing in, let nothing out.
    Quiet = 0,
    /// A primary.
    Live = 1,
    /// Another host is live: drop everything held, for good.
    Halted = 2,
}

impl Mode {
    /// An unknown mode lets nothing out: it reads as halted.
    fn from_word(value: u32) -> Self {
        match value {
            0 => Self::Quiet,
            1 => Self::Live,
            _ => Self::Halted,
        }
    }
}

/// Now, by the clock that goes on while the machine sleeps: the one that leases are measured by.
pub fn boottime() -> Instant {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).expect("CLOCK_BOOTTIME is not negative");
    let nanos = u64::try_from(now.tv_nsec).expect("nanoseconds are not negative");
    Instant::from_nanos(seconds * 1_000_000_000 + nanos)
}

/// What the gate says and what the device process says back.
#[derive(Clone, Copy, Debug)]
pub struct GateSnapshot {
    /// What the VMM published.
    pub gate: Gate,
    /// What the VMM published.
    pub mode: Mode,
    /// The smallest log offset that a held output waits for, or an order that the device process sleeps through.
    pub waiting_for: Option<LogOffset>,
    /// How many outputs the device process says it holds.
    pub held: u64,
    /// How many orders it has not read: outputs are among them.
    pub unread: u64,
    /// How many it says it has released since set-up.
    pub released: u64,
}

/// The VMM's side; cloned into the driver thread, which is the only one that publishes acks and leases.
#[derive(Clone, Debug)]
pub struct GateWriter {
    memory: Arc<SharedMemory>,
    deferral: Arc<Deferral>,
    device_doorbell: Arc<Doorbell>,
}

impl GateWriter {
    pub(crate) fn new(
        memory: Arc<SharedMemory>,
        deferral: Arc<Deferral>,
        device_doorbell: Arc<Doorbell>,
    ) -> Self {
        Self {
            memory,
            deferral,
            device_doorbell,
        }
    }

    /// The backup holds every record before `acked`. Never goes back.
    pub fn publish_acked(&self, acked: LogOffset) {
        self.memory
            .word(word::ACKED)
            .fetch_max(acked.get(), Ordering::SeqCst);
        self.wake_if_releasable();
    }

    /// Outputs may leave until then.
    pub fn publish_lease(&self, until: Instant) {
        self.memory
            .word(word::LEASE_UNTIL)
            .store(until.as_nanos(), Ordering::SeqCst);
        self.wake_if_releasable();
    }

    /// A host that was alone gets a backup: outputs wait for acks from `acked` on, and for a lease. Called while the guest
    /// stands still and nobody else publishes, so that no output is read meanwhile. The lease ends first: whoever reads
    /// the one word before and the other after it lets nothing out that may not leave.
    pub fn await_backup(&self, acked: LogOffset) {
        self.memory.word(word::LEASE_UNTIL).store(0, Ordering::SeqCst);
        self.memory.word(word::ACKED).store(acked.get(), Ordering::SeqCst);
    }

    /// Changes the mode; the device process is woken whatever it does.
    pub fn set_mode(&self, mode: Mode) {
        self.memory.flag(word::MODE).store(mode as u32, Ordering::SeqCst);
        wake(&self.memory, word::DEVICE_SLEEPS, &self.device_doorbell);
    }

    /// What stands there now.
    pub fn snapshot(&self) -> GateSnapshot {
        GateSnapshot {
            gate: read_gate(&self.memory),
            mode: read_mode(&self.memory),
            waiting_for: self.waiting_for(),
            held: self.memory.word(word::HELD).load(Ordering::Relaxed),
            unread: entries_of(&self.memory, Which::Orders, size_of::<OrderBytes>()),
            released: self.memory.word(word::RELEASED).load(Ordering::Relaxed),
        }
    }

    fn wake_if_releasable(&self) {
        fence(Ordering::SeqCst);
        let acked = LogOffset::new(self.memory.word(word::ACKED).load(Ordering::SeqCst));
        if self.waiting_for().is_some_and(|needs| needs <= acked) {
            self.deferral.claim();
            wake(&self.memory, word::DEVICE_SLEEPS, &self.device_doorbell);
        }
    }

    /// What the soonest output waits for, wherever it is.
    fn waiting_for(&self) -> Option<LogOffset> {
        let held = self.memory.word(word::WAITING_FOR).load(Ordering::SeqCst);
        let held = (held != u64::MAX).then(|| LogOffset::new(held));
        held.into_iter().chain(self.deferral.soonest()).min()
    }
}

/// The device process's side.
#[derive(Debug)]
pub(crate) struct GateReader {
    memory: Arc<SharedMemory>,
}

impl GateReader {
    pub(crate) fn new(memory: Arc<SharedMemory>) -> Self {
        Self { memory }
    }

    /// What `Outbox::poll_release` wants to know. A gate that is not [`Mode::Live`] has no lease.
    pub(crate) fn gate(&self) -> Gate {
        let gate = read_gate(&self.memory);
        match self.mode() {
            Mode::Live => gate,
            Mode::Quiet | Mode::Halted => Gate {
                acked: gate.acked,
                lease_until: Instant::from_nanos(0),
            },
        }
    }

    /// What the VMM wants of this process.
    pub(crate) fn mode(&self) -> Mode {
        read_mode(&self.memory)
    }
}

fn read_gate(memory: &SharedMemory) -> Gate {
    Gate {
        acked: LogOffset::new(memory.word(word::ACKED).load(Ordering::SeqCst)),
        lease_until: Instant::from_nanos(memory.word(word::LEASE_UNTIL).load(Ordering::SeqCst)),
    }
}

fn read_mode(memory: &SharedMemory) -> Mode {
    Mode::from_word(memory.flag(word::MODE).load(Ordering::SeqCst))
}

/// Rings if the sleeper said that it sleeps. Whatever the sleeper has to see was written before this call.
pub(crate) fn wake(memory: &SharedMemory, sleeper: usize, doorbell: &Doorbell) {
    fence(Ordering::SeqCst);
    let flag = memory.flag(sleeper);
    if flag.load(Ordering::SeqCst) != 0 && flag.swap(0, Ordering::SeqCst) != 0 {
        doorbell.ring();
    }
}
