//! The primary's handle: the vCPU thread appends records and waits for room, the driver's thread reports acks and
//! the lease. It never waits for the driver with the machine's lock held.

use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use lockstep_protocol::{Claiming, Diverged, Hello, Instant, LogOffset, Parting, PeerLost, Primary};
use parking_lot::{Condvar, Mutex, MutexGuard};
use quinn::Connection;

use super::shared::{Bell, Order, Orders};
use crate::clock;

/// What the driver's thread reports, on that thread. None of these may block or take long: heartbeats wait.
pub trait PrimaryEvents: Send {
    /// The backup holds every record before `upto`.
    fn acked(&mut self, upto: LogOffset);
    /// Outputs may leave until this moment.
    fn lease(&mut self, until: Instant);
    /// The backup's machine has diverged: nothing is acked until it is healed.
    fn diverged(&mut self, _found: &Diverged) {}
    /// `poll_heal` has something to give.
    fn heal_due(&mut self) {}
    /// The backup is lost. Nothing more is reported after this.
    fn peer_lost(&mut self, why: PeerLost);
}

/// What came of waiting for room in the log window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Room {
    /// More records may be appended.
    Open,
    /// Still none.
    Full,
    /// The backup is lost: claim the term.
    Lost(PeerLost),
}

/// The primary's end of a session.
#[derive(Debug)]
pub struct PrimaryLink {
    shared: Arc<PrimaryShared>,
    connection: Connection,
    theirs: Hello,
    thread: Option<JoinHandle<()>>,
}

/// What the handle and the driver's thread share.
#[derive(Debug)]
pub(crate) struct PrimaryShared {
    /// Whole even after a panic: each command of the machine panics before it changes anything, or does all of it.
    machine: Mutex<Primary>,
    /// Of the kind that makes no system call while nobody waits: every ack rings it.
    room: Condvar,
    pub(crate) appended: Bell,
    pub(crate) acked: Bell,
    pub(crate) orders: Orders,
    ended: OnceLock<PeerLost>,
}

impl PrimaryLink {
    pub(crate) fn new(shared: Arc<PrimaryShared>, connection: Connection, theirs: Hello) -> Self {
        Self {
            shared,
            connection,
            theirs,
            thread: None,
        }
    }

    pub(crate) fn driven_by(mut self, thread: JoinHandle<()>) -> Self {
        self.thread = Some(thread);
        self
    }

    /// The machine, to append to or to look at. Ring with `notify` after the window's records.
    pub fn lock(&self) -> MutexGuard<'_, Primary> {
        self.shared.lock()
    }

    /// Records were appended: let them be sent. Cheap while an earlier ring was not answered yet.
    pub fn notify(&self) {
        self.shared.appended.ring();
    }

    /// Blocks until the log window has room, the backup is lost, or the time is up. A lost backup is told first:
    /// a log that nobody reads has room enough.
    pub fn wait_room(&self, limit: Duration) -> Room {
        let mut primary = self.shared.lock();
        if !primary.has_room() {
            let closed =
                |primary: &mut Primary| !primary.has_ample_room() && self.shared.ended.get().is_none();
            self.shared.room.wait_while_for(&mut primary, closed, limit);
        }
        match self.shared.ended.get() {
            Some(why) => Room::Lost(why.clone()),
            None if primary.has_room() => Room::Open,
            None => Room::Full,
        }
    }

    /// Why the session has ended, if it has. No event is reported any more then.
    pub fn lost(&self) -> Option<PeerLost> {
        self.shared.ended.get().cloned()
    }

    /// The smoothed round trip of the connection.
    pub fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    /// What the backup said of itself.
    pub fn peer(&self) -> &Hello {
        &self.theirs
    }

    /// The backup is lost, or is to be given up: ends the session, and all that is left is to claim the next
    /// term. No event is reported after this returns.
    pub fn into_claiming(self) -> Claiming {
        self.shared.orders.give(Order::Quit);
        let mut primary = self.shared.lock();
        let runs = |_: &mut Primary| self.shared.ended.get().is_none();
        self.shared.room.wait_while(&mut primary, runs);
        primary.suspect(clock::now())
    }

    /// Lets the backup have all of the log, says goodbye and closes. Blocks, for about the time-out at most.
    pub fn leave(mut self, why: Parting) {
        self.shared.orders.give(Order::Leave(why));
        if let Some(thread) = self.thread.take() {
            // A driver that panicked has said so on its own.
            let _ = thread.join();
        }
    }
}

impl Drop for PrimaryLink {
    fn drop(&mut self) {
        self.shared.orders.give(Order::Quit);
    }
}

impl PrimaryShared {
    pub(crate) fn new(machine: Primary) -> Self {
        Self {
            machine: Mutex::new(machine),
            room: Condvar::new(),
            appended: Bell::default(),
            acked: Bell::default(),
            orders: Orders::default(),
            ended: OnceLock::new(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Primary> {
        self.machine.lock()
    }

    /// Acks came: somebody may wait for room.
    pub(crate) fn make_room(&self) {
        self.room.notify_all();
        self.acked.ring();
    }

    /// The session is over, and all events of it were reported.
    pub(crate) fn end(&self, why: PeerLost) {
        // Under the lock, so that nobody looks just before and sleeps just after.
        let _machine = self.lock();
        let _ = self.ended.set(why);
        self.room.notify_all();
    }
}
