//! A state of the modelled pair: two hosts, the words between them, the register, and what the outside has seen.
//!
//! The VM is as small as it can be: a request enters in one window, the reply is called for in the next exit. The
//! machines, the windows, the output rule and the register are the production code.

use std::collections::VecDeque;

use bytes::Bytes;
use lockstep_arbiter::register::Register;
use lockstep_protocol::backup::Backup;
use lockstep_protocol::ids::{Holder, Incarnation, LogOffset, NodeName, Position, Term};
use lockstep_protocol::message::{Ack, Heartbeat};
use lockstep_protocol::outbox::{Gate, Outbox, OutboxLimit};
use lockstep_protocol::primary::Primary;
use lockstep_protocol::replay::Follower;
use lockstep_protocol::session::Timing;
use lockstep_protocol::takeover::{Claiming, Takeover};
use lockstep_protocol::time::{Duration, Instant};

use super::Bounds;

/// One step of time.
const TICK: Duration = Duration::from_millis(50);

/// The shortest timing in which everything can happen: a heartbeat with every step of time; one step after a heartbeat
/// was sent its lease still holds, after two it is over, and then silence is loss.
const TIMING: Timing = Timing {
    heartbeat: Duration::from_millis(20),
    timeout: Duration::from_millis(95),
    lease: Duration::from_millis(75),
};

/// The model makes no deltas.
const DELTA_BYTES_MAX: usize = 0;

/// The term of the session.
const TERM: Term = Term::new(1);

/// A request's number; its reply has the same.
pub(super) type Number = u8;

/// What a host is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Role {
    Primary(Box<Primary>),
    Backup(Box<Backup>, Follower),
    Claiming(Claiming),
    /// The last says whether its log is replayed.
    TakingOver(Box<Takeover>, Follower, bool),
    Alone,
    Halted,
    Dead,
}

/// The VM: how far it is, which requests it has executed, and whether its last exit called for a reply.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Vm {
    pub(super) position: Position,
    pub(super) known: Number,
    pub(super) called: bool,
    /// A request has entered since the last exit.
    pub(super) asked: bool,
    pub(super) applied: LogOffset,
}

impl Vm {
    /// Runs to the next exit, which calls for a reply if a request has entered since the last one.
    pub(super) fn step(&mut self) {
        self.position = self.position.next();
        self.called = std::mem::take(&mut self.asked);
    }
}

/// A reply that is held, and where it was called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Reply {
    pub(super) number: Number,
    pub(super) position: Position,
    pub(super) needs: LogOffset,
}

/// One host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Host {
    pub(super) role: Role,
    pub(super) term: Term,
    pub(super) gate: Gate,
    pub(super) held: Outbox<Reply>,
    pub(super) vm: Vm,
    pub(super) paused: bool,
}

/// What is on its way, each stream in order: the log and heartbeats to the backup, acks and echoes to the primary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Wires {
    pub(super) log: VecDeque<Bytes>,
    pub(super) beats: VecDeque<Heartbeat>,
    pub(super) acks: VecDeque<Ack>,
    pub(super) echoes: VecDeque<Heartbeat>,
    pub(super) cut_to_backup: bool,
    pub(super) cut_to_primary: bool,
}

/// What the outside has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Seen {
    /// The newest term in which a reply left, and who sent it.
    pub(super) spoken: Option<(Term, usize)>,
    /// The newest reply.
    pub(super) newest: Number,
    /// The furthest position at which a reply was called for that has left.
    pub(super) furthest: Position,
}

/// The state.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) now: Instant,
    pub(super) hosts: [Host; 2],
    pub(super) wires: Wires,
    pub(super) register: Register,
    pub(super) seen: Seen,
    pub(super) left: Bounds,
    /// What must not have happened.
    pub(super) wrong: Option<String>,
}

impl std::hash::Hash for Pair {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.now.hash(state);
        self.hosts.hash(state);
        self.wires.hash(state);
        self.register
            .newest()
            .map(|tenure| (tenure.term, &tenure.holder))
            .hash(state);
        self.seen.hash(state);
        self.wrong.hash(state);
        let Bounds {
            requests,
            ticks,
            crashes,
            pauses,
            breaks,
            cuts,
            lost_claims,
        } = self.left;
        [requests, ticks, crashes, pauses, breaks, cuts, lost_claims].hash(state);
    }
}

/// The primary.
pub(super) const A: usize = 0;
/// The backup.
pub(super) const B: usize = 1;

impl Pair {
    /// A pair that has just met; the primary holds the first term.
    pub(super) fn new(bounds: Bounds) -> Self {
        let now = Instant::ZERO + TICK;
        let primary = Primary::new(TERM, TIMING, LogOffset::ZERO, now);
        let backup = Backup::new(TERM, TIMING, LogOffset::ZERO, now);
        let mut register = Register::default();
        register.claim(Term::ZERO, &holder(A));
        Self {
            now,
            hosts: [
                Host::new(Role::Primary(Box::new(primary))),
                Host::new(Role::Backup(Box::new(backup), Follower::new(DELTA_BYTES_MAX))),
            ],
            wires: Wires::default(),
            register,
            seen: Seen::default(),
            left: bounds,
            wrong: None,
        }
    }

    /// Time passes.
    pub(super) fn tick(&mut self) {
        self.now = self.now + TICK;
    }

    /// Something is wrong.
    pub(super) fn accuse(&mut self, sentence: impl Into<String>) {
        self.wrong.get_or_insert_with(|| sentence.into());
    }
}

impl Host {
    fn new(role: Role) -> Self {
        Self {
            role,
            term: TERM,
            gate: Gate::SHUT,
            held: Outbox::new(OutboxLimit::default()),
            vm: Vm::default(),
            paused: false,
        }
    }

    /// Does anything run on it?
    pub(super) fn runs(&self) -> bool {
        !self.paused && !matches!(self.role, Role::Dead | Role::Halted)
    }
}

/// Who a host is at the arbiter.
pub(super) fn holder(host: usize) -> Holder {
    Holder {
        node: NodeName::new(["a", "b"][host]).expect("a letter is a name"),
        incarnation: Incarnation::new(host as u128),
    }
}
