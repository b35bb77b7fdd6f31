//! One protected VM: its orders in, its frames held and released, its mode followed, its address announced.
//!
//! Owned by `sink.rs` from the moment a VMM connects to the staging socket until it hangs up. It reads guest memory
//! only to copy what an order names, and it never writes guest memory.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use lockstep_protocol::ids::{LogOffset, QueueIndex};
use lockstep_staging::chain::{Chain, Table};
use lockstep_staging::{DeviceEnd, Fault, Mode, Order, StageError};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use thiserror::Error;

use crate::frame::{Mac, announcement, copy_frame};
use crate::limits::{ANNOUNCE_AGAIN, ROUNDS_MAX, TX_BURST};
use crate::queue::Memory;
use crate::rx::{Burst, Rx};
use crate::tap::Tap;
use crate::tx::HeldFrames;

/// The only queue that orders come from.
pub const TX_QUEUE: QueueIndex = QueueIndex::new(1);

/// The VMM said what an honest VMM does not say; the session ends.
#[derive(Debug, Error)]
pub enum SessionError {
    /// It broke a ring.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// It ordered from a queue that has no outputs.
    #[error("The VMM ordered from queue {0}, which transmits nothing")]
    Queue(QueueIndex),
    /// It ordered before it shared the guest's memory.
    #[error("The VMM gave an order before it set up the vhost-user connection")]
    NotSetUp,
    /// A ring refused something that it was checked to take.
    #[error("A completion could not be staged")]
    Stage(#[source] StageError),
}

/// Where orders point: the guest's memory and the transmit queue's descriptors.
#[derive(Clone, Copy, Debug)]
pub struct Chains<'a> {
    /// Guest memory.
    pub memory: &'a Memory,
    /// The descriptors.
    pub table: Table,
}

/// How a round of work left the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It sleeps; a doorbell wakes it.
    Sleeps,
    /// Orders keep coming; others have their turn first.
    Busy,
}

/// A VMM and what this process does for it.
#[derive(Debug)]
pub struct Session {
    end: DeviceEnd,
    held: HeldFrames,
    mode: Mode,
    /// Heads whose bytes are copied and whose return is not staged yet.
    returned: u16,
    /// The frames ring was full; the tap waits for room.
    stalled: bool,
    announcer: Announcer,
}

impl Session {
    /// A session that is quiet until its VMM says otherwise.
    pub fn new(end: DeviceEnd, mac: Option<Mac>) -> io::Result<Self> {
        let announcer = Announcer::new(mac)?;
        Ok(Self {
            end,
            held: HeldFrames::default(),
            mode: Mode::Quiet,
            returned: 0,
            stalled: false,
            announcer,
        })
    }

    /// The VMM's end of it.
    pub fn end(&self) -> &DeviceEnd {
        &self.end
    }

    /// The descriptor that is readable when an announcement is due.
    pub fn timer(&self) -> &OwnedFd {
        &self.announcer.timer
    }

    /// The mode that was followed last.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether frames from the tap have somewhere to go.
    pub fn wants_frames(&self) -> bool {
        self.mode != Mode::Halted && !self.stalled
    }

    /// Takes frames from the tap, as the mode says.
    pub fn receive(&mut self, rx: &mut Rx, tap: &Tap) -> Result<Burst, Fault> {
        match self.mode {
            Mode::Live => {
                let burst = rx.stage(tap, &mut self.end)?;
                self.stalled = matches!(burst, Burst::NoRoom);
                Ok(burst)
            }
            Mode::Quiet => Ok(rx.discard(tap)),
            Mode::Halted => Ok(Burst::Empty),
        }
    }

    /// The doorbell rang.
    pub fn hear_doorbell(&mut self) {
        self.end.doorbell().drain();
    }

    /// Announces the guest's address again, if it is time.
    pub fn announce_again(&mut self) {
        self.announcer.expire();
        if self.mode == Mode::Live {
            self.announce();
        }
    }

    /// Does all there is to do, until there is nothing left or others have to have their turn.
    pub fn settle(
        &mut self,
        rx: &mut Rx,
        tap: Option<&Tap>,
        chains: Option<Chains<'_>>,
    ) -> Result<Settled, SessionError> {
        self.end.end_sleep();
        for _ in 0..ROUNDS_MAX {
            self.follow_mode();
            self.take_orders(chains)?;
            self.stage_returned()?;
            self.held.release(&mut self.end, tap);
            if let Some(tap) = tap.filter(|_| self.stalled) {
                self.receive(rx, tap)?;
            }
            self.held.publish(&mut self.end);
            if self.end.prepare_sleep(self.takes_orders()) {
                return Ok(Settled::Sleeps);
            }
        }
        Ok(Settled::Busy)
    }

    fn follow_mode(&mut self) {
        let before = self.mode;
        self.mode = self.end.mode();
        match (before, self.mode) {
            (Mode::Quiet, Mode::Live) => {
                tracing::info!("This host is live");
                self.announcer.begin();
                self.announce();
            }
            (_, Mode::Halted) if before != Mode::Halted => {
                let dropped = self.held.discard();
                tracing::warn!(dropped, "Another host is live; held frames are dropped");
            }
            _ => {}
        }
        if self.mode != Mode::Live {
            self.stalled = false;
            self.end.stop_waiting_for_frames();
        }
    }

    fn takes_orders(&self) -> bool {
        self.held.has_room() && self.returned < u16::MAX / 2
    }

    fn take_orders(&mut self, chains: Option<Chains<'_>>) -> Result<(), SessionError> {
        for _ in 0..TX_BURST {
            if !self.takes_orders() {
                break;
            }
            let Some(order) = self.end.pop_order()? else { break };
            self.take(order, chains.ok_or(SessionError::NotSetUp)?)?;
        }
        Ok(())
    }

    fn take(&mut self, order: Order, chains: Chains<'_>) -> Result<(), SessionError> {
        if order.queue != TX_QUEUE {
            return Err(SessionError::Queue(order.queue));
        }
        // Whatever the chain is, it goes back: the guest sees the same on every host.
        self.returned += 1;
        let mut frame = self.held.buffer();
        let copied = Chain::read(chains.memory, chains.table, order.head)
            .map(|chain| copy_frame(chains.memory, &chain, &mut frame));
        match copied {
            // A halted host holds nothing, so that nothing can leave it.
            Ok(Ok(())) if self.mode != Mode::Halted => self.held.hold(order.needs, frame),
            _ => self.held.give_back(frame),
        }
        Ok(())
    }

    fn stage_returned(&mut self) -> Result<(), SessionError> {
        if self.returned == 0 {
            return Ok(());
        }
        match self.end.stage_returned(TX_QUEUE, self.returned) {
            Ok(()) => self.returned = 0,
            // The doorbell rings when there is room.
            Err(StageError::Full) => {}
            Err(StageError::Fault(fault)) => return Err(fault.into()),
            Err(error) => return Err(SessionError::Stage(error)),
        }
        Ok(())
    }

    /// An announcement is an output that needs no record: it leaves as soon as this host may speak at all.
    fn announce(&mut self) {
        if let Some(mac) = self.announcer.mac
            && self.held.has_room()
        {
            self.held.hold(LogOffset::ZERO, announcement(mac));
        }
    }
}

/// When to announce whom.
#[derive(Debug)]
struct Announcer {
    mac: Option<Mac>,
    timer: OwnedFd,
    /// What of the plan is left.
    left: &'static [Duration],
}

impl Announcer {
    fn new(mac: Option<Mac>) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self {
            mac,
            timer,
            left: &[],
        })
    }

    fn begin(&mut self) {
        if self.mac.is_none() {
            tracing::warn!("No --mac was given, so bridges are not told where the guest is now");
            return;
        }
        self.left = &ANNOUNCE_AGAIN;
        self.arm(Duration::ZERO);
    }

    /// Sets the timer for the next announcement, `done` after the first.
    fn arm(&mut self, done: Duration) {
        let Some((next, left)) = self.left.split_first() else {
            return;
        };
        self.left = left;
        let wait = next.saturating_sub(done);
        let value = Timespec {
            tv_sec: wait.as_secs().cast_signed(),
            tv_nsec: wait.subsec_nanos().into(),
        };
        let once = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: value,
        };
        if let Err(error) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once) {
            tracing::warn!(%error, "The announcement cannot be repeated");
        }
    }

    fn expire(&mut self) {
        let mut count = [0; 8];
        // Nothing to read is a timer that was set anew meanwhile.
        let _ = rustix::io::read(&self.timer, &mut count);
        let past = ANNOUNCE_AGAIN.len() - self.left.len();
        let done = past
            .checked_sub(1)
            .map_or(Duration::ZERO, |last| ANNOUNCE_AGAIN[last]);
        self.arm(done);
    }
}
