//! The main loop's body: one round takes in what has come, executes it, and sends what may leave. The image calls
//! [`Server::turn`] again and again and idles for as long as it says. Never waits itself.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, State};

use crate::conn::{Conn, Stall};
use crate::db::Db;
use crate::disk::Disk;
use crate::log::Readiness;
use crate::stack::{Nic, Stack};
use crate::units::Time;

/// How often keys whose time is over are looked for.
const SWEEP_EVERY: Duration = Duration::from_millis(100);
/// How long a connection that we ended may take to end on the other side.
const LINGER_MAX: Duration = Duration::from_secs(5);
/// How long a client may take to complete a connection that it began, so that those who never do leave room.
const GREETING_MAX: Duration = Duration::from_secs(3);
/// Rounds in a row after which the VMM gets a window, whatever there is to do: some things come only in windows.
const ROUNDS_MAX: u32 = 8;

/// What the main loop is to do after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another round at once: there is more to do.
    Again,
    /// Nothing until something arrives, or this long has passed.
    Wait(Option<Duration>),
    /// SHUTDOWN was called, everything is durable and said.
    PowerOff,
}

/// What a socket is used for.
#[derive(Debug)]
enum Slot {
    Listening,
    /// Somebody began a connection.
    Greeting(Time),
    Open(Box<Conn>),
    /// We are done with it, the other side may not be.
    Lingering(Time),
}

impl Slot {
    /// Looks whether a client has come; true when its connection is complete.
    fn admit(&mut self, socket: &mut Socket<'_>, now: Time) -> bool {
        match (&self, socket.state()) {
            (Slot::Open(_) | Slot::Lingering(_), _) | (Slot::Listening, State::Listen) => false,
            (Slot::Listening, State::SynReceived) => {
                *self = Slot::Greeting(now);
                false
            }
            (Slot::Greeting(_), State::Listen) => {
                *self = Slot::Listening;
                false
            }
            (Slot::Greeting(since), State::SynReceived) => {
                if now.since(*since) > GREETING_MAX {
                    socket.abort();
                    *self = Slot::Lingering(now);
                }
                false
            }
            (Slot::Listening | Slot::Greeting(_), _) => true,
        }
    }
}

/// The server.
pub struct Server<N, D> {
    db: Db,
    stack: Stack,
    nic: N,
    disk: D,
    slots: Vec<(SocketHandle, Slot)>,
    /// What large commands and replies hold, of all connections.
    excess: usize,
    /// Since when the connection waits for memory that has waited longest.
    oldest_wait: Option<Time>,
    next_sweep: Time,
    failed: bool,
    /// Rounds since the last wait.
    rounds: u32,
}

/// What the connections wait for after a round.
#[derive(Clone, Copy, Debug, Default)]
struct Waiting {
    /// One could go on at once.
    nothing: bool,
    /// One computes.
    work: bool,
    log: bool,
    /// One needs memory; so much was held when it was refused.
    memory: Option<usize>,
}

impl<N: Nic, D: Disk> Server<N, D> {
    /// A server on a stack whose sockets all listen.
    pub fn new(db: Db, stack: Stack, handles: Vec<SocketHandle>, nic: N, disk: D) -> Self {
        let slots = handles
            .into_iter()
            .map(|handle| (handle, Slot::Listening))
            .collect();
        Server {
            db,
            stack,
            nic,
            disk,
            slots,
            excess: 0,
            oldest_wait: None,
            next_sweep: Time::ZERO,
            failed: false,
            rounds: 0,
        }
    }

    /// One round.
    pub fn turn(&mut self, now: Time) -> Next {
        self.db.now = now;
        self.stack.tell_time(now);
        self.db.log.drive(&mut self.disk, &self.db.store, now);
        self.stack.receive(&mut self.nic);

        let mut waiting = self.execute();
        if now >= self.next_sweep {
            self.db.sweep();
            self.next_sweep = now.after(SWEEP_EVERY);
        }
        self.db.log.drive(&mut self.disk, &self.db.store, now);

        waiting.nothing |= self.send();
        waiting.nothing |= waiting.memory.is_some_and(|held| self.excess < held);
        self.stack.transmit(&mut self.nic);
        // Both at last, for a VMM that takes with one kick what all queues hold.
        self.disk.kick();
        self.nic.kick();
        self.next(waiting)
    }

    /// Executes what the clients have sent.
    fn execute(&mut self) -> Waiting {
        let mut waiting = Waiting::default();
        let mut oldest_wait = None;
        let buffers_max = self.db.memory.buffers_max;
        for (handle, slot) in &mut self.slots {
            let socket = self.stack.socket(*handle);
            if slot.admit(socket, self.db.now) {
                self.db.accepted += 1;
                self.db.clients += 1;
                *slot = Slot::Open(Box::new(Conn::new(self.db.accepted)));
            }
            let Slot::Open(conn) = slot else { continue };
            self.excess -= conn.excess();
            loop {
                // First come, first served: whoever has not waited longest finds no shared memory.
                let is_first = self
                    .oldest_wait
                    .is_none_or(|oldest| conn.starving() == Some(oldest));
                let spare = if is_first {
                    // What this connection has is of its share, and is not free any more.
                    let free = self.db.spare().saturating_add(conn.excess());
                    buffers_max.saturating_sub(self.excess).min(free)
                } else {
                    0
                };
                let stall = conn.execute(&mut self.db, spare);
                waiting.log |= stall == Stall::Log;
                waiting.work |= stall == Stall::Work;
                if stall == Stall::Memory {
                    waiting.memory = waiting.memory.max(Some(self.excess + conn.excess()));
                }
                if stall == Stall::Hungry && !socket.can_recv() && !socket.may_recv() {
                    conn.handle_end();
                }
                let room = conn.room();
                if room == 0 || !socket.can_recv() || self.db.shutdown.is_some() {
                    break;
                }
                let fed = socket.recv(|bytes| {
                    let taken = bytes.len().min(room);
                    conn.feed(&bytes[..taken]);
                    (taken, taken)
                });
                if !matches!(fed, Ok(1..)) || stall != Stall::Hungry {
                    break;
                }
            }
            self.excess += conn.excess();
            oldest_wait = [oldest_wait, conn.starving()].into_iter().flatten().min();
        }
        self.oldest_wait = oldest_wait;
        waiting
    }

    /// Gives the sockets what may leave. True if a client that had stalled on its replies can go on.
    fn send(&mut self) -> bool {
        let durable = self.db.log.durable();
        let has_failed =
            self.db.log.readiness() == Readiness::Failed && !core::mem::replace(&mut self.failed, true);
        let mut can_go_on = false;
        for (handle, slot) in &mut self.slots {
            let socket = self.stack.socket(*handle);
            if let Slot::Open(conn) = slot {
                self.excess -= conn.excess();
                if self.db.log.readiness() == Readiness::Failed {
                    conn.fail(durable);
                } else {
                    conn.release(durable);
                }
                // Not whether there is room: what it said before it stalled may fill its room, and lies ready.
                let was_full = conn.is_full();
                while !conn.sendable().is_empty() {
                    match socket.send_slice(conn.sendable()) {
                        Ok(sent @ 1..) => conn.handle_sent(sent),
                        _ => break,
                    }
                }
                can_go_on |= was_full && !conn.is_full();
                let is_over = conn.is_finished() || !socket.is_open() || !socket.may_send();
                if is_over {
                    socket.close();
                    self.db.clients -= 1;
                    *slot = Slot::Lingering(self.db.now);
                } else {
                    self.excess += conn.excess();
                }
            }
            if let Slot::Lingering(since) = *slot {
                if !socket.is_open() && socket.remote_endpoint().is_none() {
                    *slot = Slot::Listening;
                    self.stack.listen(*handle);
                } else if self.db.now.since(since) > LINGER_MAX && socket.state() != State::TimeWait {
                    socket.abort();
                } else if socket.can_recv() {
                    // Nobody will read it, but while it lies there the other side cannot end.
                    let _ = socket.recv(|bytes| (bytes.len(), ()));
                }
            }
        }
        can_go_on || has_failed
    }

    fn next(&mut self, waiting: Waiting) -> Next {
        if self.may_power_off() {
            return Next::PowerOff;
        }
        if waiting.work {
            // Nobody is asked for a window: a guest that computes is one that the VMM has to stop.
            return Next::Again;
        }
        let log_is_ready = waiting.log && self.db.log.readiness() != Readiness::Later;
        if waiting.nothing || log_is_ready || self.nic.has_frames() || self.disk.has_done() {
            self.rounds += 1;
            if self.rounds < ROUNDS_MAX {
                return Next::Again;
            }
            self.rounds = 0;
            return Next::Wait(Some(Duration::ZERO));
        }
        self.rounds = 0;
        // Keys go, clients give up, and a shutdown ends when their time is over, not when something happens.
        let sweep = (self.db.store.expiring() > 0 || waiting.memory.is_some() || self.db.shutdown.is_some())
            .then(|| self.next_sweep.since(self.db.now));
        let wait = self.stack.wait();
        Next::Wait(match (wait, sweep) {
            (Some(wait), Some(sweep)) => Some(wait.min(sweep)),
            (wait, sweep) => wait.or(sweep),
        })
    }

    /// After SHUTDOWN: everything is on disk, and everybody has heard the rest or had the time to.
    fn may_power_off(&self) -> bool {
        let Some(since) = self.db.shutdown else {
            return false;
        };
        let is_quiet = |slot: &Slot| match slot {
            Slot::Open(conn) => conn.is_quiet(),
            _ => true,
        };
        let all_heard = self.slots.iter().all(|(_, slot)| is_quiet(slot));
        self.db.log.is_settled() && (all_heard || self.db.now.since(since) > LINGER_MAX)
    }
}
