//! The simulated guest: a small server that executes requests, answers over a network card, and keeps what it is asked
//! to keep on a shared disk. It makes exits, takes inputs in windows and does the same thing wherever the same inputs
//! enter at the same positions.
//!
//! The vCPU of a simulated host steps it and lets inputs enter, as `vmm/src/machine.rs` does with a real guest. It
//! reads no clock and throws no dice but those that its power-on brought.

mod enter;
mod request;

pub(crate) use enter::{DISK, NET};
pub(crate) use request::{Asked, Block, Reply};

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

use lockstep_protocol::ids::{GuestTime, Head, Position};

use super::chain::{Chain, State};
use super::dice::Dice;

/// How many clients the server knows.
pub(crate) const CLIENTS: usize = 4;
/// How many sectors its disk has; each state goes to one of them by its number.
pub(crate) const SECTORS: u64 = 4;
/// How many frames it has buffers for.
pub(crate) const RX_QUEUE: usize = 8;
/// How many frames can be on their way out.
pub(crate) const TX_QUEUE: usize = 8;
/// How many requests its disk takes at once.
pub(crate) const DISK_QUEUE: usize = 3;

/// What the guest did in the exit that opened a window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Chains that it made available.
    pub(crate) kick: Option<Kick>,
    /// It idles, at most so many nanoseconds if it says so.
    pub(crate) idle: Option<Option<u64>>,
    /// It switched its machine off.
    pub(crate) end: bool,
}

/// New chains on one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kick {
    /// Frames to be sent, oldest first.
    Net(Vec<Reply>),
    /// A request to the disk.
    Disk(Job),
}

/// A request to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    /// The head of its chain.
    pub(crate) head: Head,
    /// What the disk shall do.
    pub(crate) work: Work,
}

/// What a disk can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Reads a sector.
    Read(u64),
    /// Writes a sector.
    Write(u64, Block),
}

/// Why a delta does not lead to this guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Astray {
    /// Something of it is missing.
    #[error("A delta enters that is not whole")]
    NotWhole,
    /// It is of another position.
    #[error("A delta of position {0} enters at position {1}")]
    Elsewhere(Position, Position),
}

/// What the guest is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It reads its disk; `next` is the next sector, `best` the newest state found.
    Booting { next: u64, best: State },
    /// It serves.
    Serving,
    /// It has switched its machine off.
    Off,
}

/// One client as the server knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Caller {
    /// The last request that was executed for it.
    seq: u32,
    /// What it was or will be told; nothing while the disk has it.
    reply: Option<Reply>,
}

/// The guest in its machine.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    position: Position,
    time: GuestTime,
    noise: Dice,
    phase: Phase,
    chain: Chain,
    asked: VecDeque<Asked>,
    callers: [Caller; CLIENTS],
    ready: VecDeque<Reply>,
    /// Transmit chains in flight, oldest first.
    sending: VecDeque<Reply>,
    /// Disk chains in flight, oldest first, and whom to tell when they are done.
    keeping: VecDeque<(Job, Option<Reply>)>,
    next_head: u16,
}

impl Guest {
    /// A machine before its first instruction, at position 0, with its first window open.
    pub(crate) fn new() -> Self {
        Self {
            position: Position::ZERO,
            time: GuestTime::ZERO,
            noise: Dice::of(0),
            phase: Phase::Booting {
                next: 0,
                best: State::default(),
            },
            chain: Chain::default(),
            asked: VecDeque::new(),
            callers: [Caller::default(); CLIENTS],
            ready: VecDeque::new(),
            sending: VecDeque::new(),
            keeping: VecDeque::new(),
            next_head: 0,
        }
    }

    /// Closes the window and runs to the next synchronous exit.
    pub(crate) fn step(&mut self) -> Exit {
        self.position = self.position.next();
        if self.phase != Phase::Off && self.noise.chance(200) {
            return Exit::default();
        }
        match self.phase {
            Phase::Booting { next, best } => self.boot(next, best),
            Phase::Serving => self.serve(),
            Phase::Off => unreachable!("a machine that was switched off is not run"),
        }
    }

    /// Computes something of which no log says how it ends: it goes on another way than any other guest would.
    pub(crate) fn wander(&mut self, chance: u64) {
        self.noise = Dice::of(chance);
    }

    /// A hash of what decides how it goes on.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        format!(
            "{:?}",
            (self.position, self.time, &self.noise, self.phase, self.next_head)
        )
        .hash(&mut hasher);
        hasher.finish()
    }

    /// Becomes what the guest of the primary is, in the middle of a run.
    pub(crate) fn become_like(&mut self, other: Option<&Self>, heals: bool) -> Result<(), Astray> {
        let other = other.ok_or(Astray::NotWhole)?;
        if other.position != self.position && !heals {
            return Err(Astray::Elsewhere(other.position, self.position));
        }
        *self = other.clone();
        Ok(())
    }

    fn boot(&mut self, next: u64, best: State) -> Exit {
        if next < SECTORS && self.keeping.len() < DISK_QUEUE {
            self.phase = Phase::Booting { next: next + 1, best };
            return self.kick_disk(Work::Read(next), None);
        }
        if !self.keeping.is_empty() {
            return Exit {
                idle: Some(None),
                ..Exit::default()
            };
        }
        self.chain = Chain::from(best);
        self.phase = Phase::Serving;
        Exit::default()
    }

    fn serve(&mut self) -> Exit {
        let room = TX_QUEUE - self.sending.len();
        if room > 0 && !self.ready.is_empty() {
            let count = room.min(self.ready.len()).min(1 + self.noise.below(3) as usize);
            let frames: Vec<_> = self.ready.drain(..count).collect();
            self.sending.extend(&frames);
            return Exit {
                kick: Some(Kick::Net(frames)),
                ..Exit::default()
            };
        }
        let waits_for_disk = self.asked.front().is_some_and(|asked| asked.is_kept());
        match self
            .asked
            .pop_front_if(|_| !waits_for_disk || self.keeping.len() < DISK_QUEUE)
        {
            Some(asked) => self.answer(&asked),
            None => {
                let limit = self
                    .noise
                    .chance(300)
                    .then(|| 1_000_000 + self.noise.below(20_000_000));
                Exit {
                    idle: Some(limit),
                    ..Exit::default()
                }
            }
        }
    }

    /// Executes a request once, however often it comes.
    fn answer(&mut self, asked: &Asked) -> Exit {
        let caller = &mut self.callers[asked.client()];
        if asked.seq <= caller.seq {
            let again = caller.reply.filter(|reply| reply.seq == asked.seq);
            let on_its_way = |reply: &Reply| self.ready.contains(reply) || self.sending.contains(reply);
            self.ready.extend(again.filter(|reply| !on_its_way(reply)));
            return Exit::default();
        }
        if asked.ends_the_machine() {
            self.phase = Phase::Off;
            return Exit {
                end: true,
                ..Exit::default()
            };
        }
        let state = self.chain.execute(asked.digest(self.time));
        let reply = Reply {
            client: asked.client,
            seq: asked.seq,
            kept: asked.is_kept(),
            state,
        };
        caller.seq = asked.seq;
        if asked.is_kept() {
            caller.reply = None;
            return self.kick_disk(Work::Write(state.count % SECTORS, Block(state)), Some(reply));
        }
        caller.reply = Some(reply);
        self.ready.push_back(reply);
        Exit::default()
    }

    fn kick_disk(&mut self, work: Work, then: Option<Reply>) -> Exit {
        let job = Job {
            head: Head::new(self.next_head),
            work,
        };
        self.next_head = self.next_head.wrapping_add(1);
        self.keeping.push_back((job, then));
        Exit {
            kick: Some(Kick::Disk(job)),
            ..Exit::default()
        }
    }

    /// How many synchronous exits there were.
    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// What its clock shows.
    pub(crate) fn time(&self) -> GuestTime {
        self.time
    }

    /// All states of its server, once it has read its disk.
    pub(crate) fn chain(&self) -> Option<&Chain> {
        match self.phase {
            Phase::Booting { .. } => None,
            Phase::Serving | Phase::Off => Some(&self.chain),
        }
    }

    /// How many frames it has buffers for now.
    pub(crate) fn receive_room(&self) -> usize {
        RX_QUEUE - self.asked.len()
    }

    /// Transmit chains that nobody has returned, oldest first.
    pub(crate) fn sending(&self) -> impl Iterator<Item = &Reply> {
        self.sending.iter()
    }

    /// Disk chains that nobody has completed, oldest first.
    pub(crate) fn keeping(&self) -> impl Iterator<Item = Job> {
        self.keeping.iter().map(|(job, _)| *job)
    }
}
