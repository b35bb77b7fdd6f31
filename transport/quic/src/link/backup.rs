//! The backup's handle: the vCPU thread takes records one by one and says how far it came; the driver's thread
//! fills in what the primary sends. Records that were received outlive the session.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use lockstep_protocol::{Backup, Hello, LogOffset, Parting, PeerLost, Position, Record, Takeover};
use parking_lot::{Condvar, Mutex, MutexGuard};
use quinn::Connection;
use tokio::sync::Notify;

use super::shared::{Bell, Order, Orders};
use crate::clock;

/// What the driver's thread reports, on that thread. None of these may block or take long: echoes wait.
pub trait BackupEvents: Send {
    /// We listen for the primary, at this address.
    fn listening(&mut self, _at: std::net::SocketAddr) {}
    /// Records came.
    fn received(&mut self, _upto: LogOffset) {}
    /// The primary is lost. Nothing more is reported after this.
    fn peer_lost(&mut self, why: PeerLost);
}

/// What came of waiting for a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// The next record of the log.
    Record(Record),
    /// The primary is lost, and every record that it sent was delivered before.
    PeerLost(PeerLost),
    /// Nothing yet.
    Nothing,
}

/// The backup's end of a session.
#[derive(Debug)]
pub struct BackupLink {
    shared: Arc<BackupShared>,
    connection: Connection,
    theirs: Hello,
    thread: Option<JoinHandle<()>>,
}

/// What the handle and the driver's thread share.
#[derive(Debug)]
pub(crate) struct BackupShared {
    /// Whole even after a panic: each command of the machine panics before it changes anything, or does all of it.
    intake: Mutex<Intake>,
    /// Of the kind that makes no system call while nobody waits: every piece of the log rings it.
    arrived: Condvar,
    pub(crate) drained: Notify,
    pub(crate) news: Bell,
    pub(crate) orders: Orders,
}

/// The machine on its way from backup to whatever comes after.
#[derive(Debug)]
enum Intake {
    /// The session runs. `paused`: the driver has stopped reading because the machine is full.
    Session { backup: Backup, paused: bool },
    /// The session is over, and all events of it were reported. Nothing can be echoed or acked any more.
    Over { takeover: Takeover, why: PeerLost },
    /// The VMM has taken what is left.
    HandedOver,
}

/// The session is over: there is no machine to feed any more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionOver;

impl BackupLink {
    pub(crate) fn new(shared: Arc<BackupShared>, connection: Connection, theirs: Hello) -> Self {
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

    /// The next record; waits for it at most `limit`. The loss of the primary is told after the last record.
    pub fn wait_record(&self, limit: Duration) -> Delivered {
        let mut delivered = Delivered::Nothing;
        let mut intake = self.shared.lock();
        let comes = |intake: &mut Intake| {
            delivered = intake.poll();
            delivered == Delivered::Nothing
        };
        self.shared.arrived.wait_while_for(&mut intake, comes, limit);
        if intake.resumes() {
            self.shared.drained.notify_one();
        }
        delivered
    }

    /// Waits until a record behind `start` has come, or why none will.
    pub fn wait_log(&self, start: LogOffset) -> Result<(), PeerLost> {
        let waits = |intake: &mut Intake| matches!(intake, Intake::Session { backup, .. } if backup.received() == start);
        let mut intake = self.shared.lock();
        self.shared.arrived.wait_while(&mut intake, waits);
        match &*intake {
            Intake::Over { takeover, why } if takeover.end() == start => Err(why.clone()),
            _ => Ok(()),
        }
    }

    /// Our VM has applied every record before `upto` and is at `position`. The primary hears of it with the
    /// next ack or heartbeat.
    pub fn executed(&self, upto: LogOffset, position: Position) {
        if let Intake::Session { backup, .. } = &mut *self.shared.lock() {
            backup.handle_executed(upto, position);
        }
    }

    /// Our VM is not the primary's any more: the primary hears of it, and nothing is acked or claimed until `healed`.
    pub fn diverged(&self, position: Position, what: &str) {
        match &mut *self.shared.lock() {
            Intake::Session { backup, .. } => backup.diverge(position, what),
            Intake::Over { takeover, .. } => takeover.handle_diverged(),
            Intake::HandedOver => {}
        }
        self.shared.news.ring();
    }

    /// What the pages of our VM come to, that has diverged.
    pub fn counted(&self, hashes: &[u64]) {
        if let Intake::Session { backup, .. } = &mut *self.shared.lock() {
            backup.count(hashes);
        }
        self.shared.news.ring();
    }

    /// A delta made our VM the primary's again.
    pub fn healed(&self) {
        match &mut *self.shared.lock() {
            Intake::Session { backup, .. } => backup.heal(),
            Intake::Over { takeover, .. } => takeover.handle_healed(),
            Intake::HandedOver => {}
        }
        self.shared.news.ring();
    }

    /// Every record before this was received.
    pub fn received(&self) -> LogOffset {
        match &*self.shared.lock() {
            Intake::Session { backup, .. } => backup.received(),
            Intake::Over { takeover, .. } => takeover.end(),
            Intake::HandedOver => unreachable!("handing over consumes the handle"),
        }
    }

    /// How many bytes of log were received.
    pub fn log_bytes(&self) -> u64 {
        match &*self.shared.lock() {
            Intake::Session { backup, .. } => backup.log_bytes(),
            Intake::Over { takeover, .. } => takeover.log_bytes(),
            Intake::HandedOver => unreachable!("handing over consumes the handle"),
        }
    }

    /// Why the session has ended, if it has. No event is reported any more then.
    pub fn lost(&self) -> Option<PeerLost> {
        match &*self.shared.lock() {
            Intake::Over { why, .. } => Some(why.clone()),
            Intake::Session { .. } | Intake::HandedOver => None,
        }
    }

    /// The smoothed round trip of the connection.
    pub fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    /// What the primary said of itself.
    pub fn peer(&self) -> &Hello {
        &self.theirs
    }

    /// The primary is lost: ends the session, so that nothing is echoed any more, and hands over what is left
    /// to deliver. Does not wait for the connection to be closed in good order.
    pub fn into_takeover(self) -> Takeover {
        self.shared.orders.give(Order::Quit);
        let running = |intake: &mut Intake| matches!(intake, Intake::Session { .. });
        let mut intake = self.shared.lock();
        self.shared.arrived.wait_while(&mut intake, running);
        match std::mem::replace(&mut *intake, Intake::HandedOver) {
            Intake::Over { takeover, .. } => takeover,
            Intake::Session { .. } | Intake::HandedOver => unreachable!("waited until the session is over"),
        }
    }

    /// Says goodbye and closes. Blocks, for about the time-out at most.
    pub fn leave(mut self, why: Parting) {
        self.shared.orders.give(Order::Leave(why));
        if let Some(thread) = self.thread.take() {
            // A driver that panicked has said so on its own.
            let _ = thread.join();
        }
    }
}

impl Drop for BackupLink {
    fn drop(&mut self) {
        self.shared.orders.give(Order::Quit);
    }
}

impl BackupShared {
    pub(crate) fn new(backup: Backup) -> Self {
        Self {
            intake: Mutex::new(Intake::Session {
                backup,
                paused: false,
            }),
            arrived: Condvar::new(),
            drained: Notify::new(),
            news: Bell::default(),
            orders: Orders::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Intake> {
        self.intake.lock()
    }

    /// Feeds or asks the machine, while there is one.
    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut Backup) -> R) -> Result<R, SessionOver> {
        match &mut *self.lock() {
            Intake::Session { backup, .. } => Ok(act(backup)),
            Intake::Over { .. } | Intake::HandedOver => Err(SessionOver),
        }
    }

    /// May the driver read more of the log? If not, `drained` rings when it may.
    pub(crate) fn may_receive(&self) -> Result<bool, SessionOver> {
        match &mut *self.lock() {
            Intake::Session { backup, paused } => {
                *paused = !backup.may_receive();
                Ok(!*paused)
            }
            Intake::Over { .. } | Intake::HandedOver => Err(SessionOver),
        }
    }

    /// Records came: the vCPU thread may wait for them.
    pub(crate) fn deliver(&self) {
        self.arrived.notify_all();
    }

    /// The session is over, and all events of it were reported.
    pub(crate) fn end(&self, why: PeerLost) {
        let mut intake = self.lock();
        *intake = match std::mem::replace(&mut *intake, Intake::HandedOver) {
            Intake::Session { backup, .. } => Intake::Over {
                takeover: backup.suspect(clock::now()),
                why,
            },
            over => over,
        };
        self.arrived.notify_all();
    }
}

impl Intake {
    fn poll(&mut self) -> Delivered {
        let record = match self {
            Self::Session { backup, .. } => backup.poll_deliver(),
            Self::Over { takeover, .. } => takeover.poll_deliver(),
            Self::HandedOver => None,
        };
        match (record, &*self) {
            (Some(record), _) => Delivered::Record(record),
            (None, Self::Over { why, .. }) => Delivered::PeerLost(why.clone()),
            (None, _) => Delivered::Nothing,
        }
    }

    /// Was the driver's reading paused, and can it go on now?
    fn resumes(&mut self) -> bool {
        let Self::Session { backup, paused } = self else {
            return false;
        };
        let resumes = *paused && backup.may_resume();
        *paused &= !resumes;
        resumes
    }
}
