//! The VMM process of a simulated host, with the machines of the protocol that it drives, its guest and its device
//! processes. It does what `vmm/src/run` does; who calls what is the same, only the waiting is different: where a
//! thread would block, the process returns and is woken.

mod driver;
mod leave;
mod live;
mod reprotect;
mod settle;
mod shadow;
mod standby;
mod start;

pub(crate) use driver::{BackupEnd, PrimaryEnd};
pub(crate) use start::StartAs;

use std::collections::VecDeque;

use bytes::Bytes;
use lockstep_protocol::ids::{GuestTime, Holder, LogOffset, Position, Term};
use lockstep_protocol::replay::Follower;
use lockstep_protocol::session::Parting;
use lockstep_protocol::time::Instant;

use super::agenda::Actor;
use super::arbiter::{Answer, Answered, Question, Seat};
use super::clock::Moment;
use super::device::{Card, Desk, Drive, Mode};
use super::env::Env;
use super::guest::{Exit, Guest};
use super::wires::{Arrival, ConnId, StateWord, Word};
use driver::{Dialing, Listening};
use reprotect::Search;
use settle::Settling;
use standby::Knocking;

/// What the vCPU thread is doing.
#[derive(Debug)]
pub(crate) enum Part {
    /// It asks the register which term is the newest.
    Reading(StartAs),
    /// It waits until the other host is there.
    Meeting { newest: Term },
    /// It claims the first term of its reign.
    ClaimingFirst { expected: Term, alone: bool },
    /// It has its first term, alone, and waits until the lease of whoever had one is over.
    Outlasting { term: Term, until: Moment },
    /// It is a spare: it looks for a VM to be copied to it.
    Standby(Knocking),
    /// It holds a VM that was copied to it, and waits until then for its log.
    Joining { until: Moment },
    /// It talks to the outside.
    Live,
    /// Its guest stands still: a spare holds it, and a term with that is about to begin. Until it has met the spare it
    /// waits no longer than this.
    Pairing { until: Option<Moment> },
    /// It executes what the primary executed.
    Following(Following),
    /// Its peer is lost.
    Settling(Box<Settling>),
    /// It was asked to stop, or its guest is over: its last outputs leave.
    Leaving { why: Parting, until: Moment },
    /// Another host lives.
    Halted,
    /// It has ended.
    Over,
}

impl Part {
    /// One word for it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Reading(_) => "reading the register",
            Self::Meeting { .. } => "waiting for its other half",
            Self::ClaimingFirst { .. } => "claiming its first term",
            Self::Outlasting { .. } => "outlasting a lease",
            Self::Standby(_) => "standing by",
            Self::Joining { .. } => "waiting for the log of a copy",
            Self::Live => "live",
            Self::Pairing { .. } => "beginning a term with a spare",
            Self::Following(_) => "following",
            Self::Settling(_) => "settling",
            Self::Leaving { .. } => "leaving",
            Self::Halted => "halted",
            Self::Over => "over",
        }
    }
}

/// A backup's way through the log.
#[derive(Debug)]
pub(crate) struct Following {
    follower: Follower,
    applied: LogOffset,
    /// The primary's guest called for an output in the open window, or ended in it.
    marked: bool,
    /// Where the log begins.
    start: LogOffset,
}

impl Default for Following {
    fn default() -> Self {
        Self {
            follower: Follower::new(DELTA_BYTES_MAX),
            applied: LogOffset::ZERO,
            marked: false,
            start: LogOffset::ZERO,
        }
    }
}

/// What a bit that flipped did to the guest of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// None has flipped, or the guest was healed.
    None,
    /// The process does not know yet that a bit flipped when the guest was there.
    Hidden(Position),
    /// It does: its guest has diverged.
    Known,
}

/// What the process knows of the other host.
#[derive(Debug)]
pub(crate) enum Pair {
    /// It has none.
    Nobody,
    /// It looks for its backup.
    Dialing(Dialing),
    /// It waits for its primary.
    Listening(Listening),
    /// It has a backup.
    Primary(Box<PrimaryEnd>),
    /// It has a primary.
    Backup(Box<BackupEnd>),
}

/// The process.
#[derive(Debug)]
pub(crate) struct Process {
    /// Where it runs, and in which term.
    pub(crate) desk: Desk,
    /// Who it is at the arbiter.
    pub(crate) me: Holder,
    /// What it is at the moment.
    pub(crate) part: Part,
    /// Its peer.
    pub(crate) pair: Pair,
    /// Its guest.
    pub(crate) guest: Guest,
    /// Its network card.
    pub(crate) card: Card,
    /// Its disk.
    pub(crate) drive: Drive,
    /// Since when it does what it does, for the operator.
    pub(crate) since: Moment,
    seat: Seat,
    /// The exit whose window is open; none while the guest runs.
    window: Option<Exit>,
    /// Until when the guest idles, if it said so.
    sleeps_until: Option<GuestTime>,
    powered: bool,
    /// What is wrong with the guest of this backup.
    flaw: Flaw,
    /// The guest was stopped in the middle of a run, and its delta is half out.
    stalled: bool,
    /// The vCPU executes until then.
    busy_until: Moment,
    /// What the guest's clock showed when ours showed that.
    time: (GuestTime, Instant),
    /// Where the log of a host without a backup ends.
    alone_end: LogOffset,
    /// How far it is with making a backup of a spare.
    search: Search,
    /// What came over connections for copies.
    state: VecDeque<(Arrival, StateWord)>,
}

impl Process {
    /// A process that was just started.
    pub(crate) fn start(env: &mut Env, desk: Desk, me: Holder, role: StartAs) -> Self {
        env.tell(desk.host, || format!("is started as {role:?}"));
        let now = desk.now(env);
        let mut process = Self {
            desk,
            me,
            part: Part::Reading(role),
            pair: Pair::Nobody,
            guest: Guest::new(),
            card: Card::new(),
            drive: Drive::new(),
            since: env.now,
            seat: Seat::default(),
            window: None,
            sleeps_until: None,
            powered: false,
            flaw: Flaw::None,
            stalled: false,
            busy_until: env.now,
            time: (GuestTime::ZERO, now),
            alone_end: LogOffset::ZERO,
            search: Search::Idle,
            state: VecDeque::new(),
        };
        match role {
            StartAs::Standby => process.stand_by(env),
            _ => process.ask(env, Question::Read),
        }
        process
    }

    /// A sleeper of this host was woken.
    pub(crate) fn wake(&mut self, env: &mut Env, actor: Actor) {
        match actor {
            Actor::Driver => self.drive(env),
            Actor::Vcpu if env.now < self.busy_until => self.wake_vcpu_at(env, self.busy_until),
            Actor::Vcpu => self.run(env),
            Actor::Net => self.card.settle(env, &self.desk, self.guest.chain()),
            Actor::Disk => self.drive.pump(env, &self.desk, self.guest.chain()),
        }
    }

    fn run(&mut self, env: &mut Env) {
        match &self.part {
            Part::Live => self.live(env),
            Part::Following(_) => self.follow(env),
            Part::Settling(_) => self.settle(env),
            Part::Leaving { why, until } => self.leave(env, *why, *until),
            Part::Outlasting { term, until } if env.now >= *until => self.go_live(env, *term, true),
            Part::Outlasting { until, .. } => self.wake_vcpu_at(env, *until),
            Part::Joining { until } if env.now >= *until => self.stand_by(env),
            Part::Joining { until } => self.wake_vcpu_at(env, *until),
            Part::Pairing { until: Some(until) } if env.now >= *until => {
                self.stay_alone(env, "the spare does not begin the session");
            }
            Part::Pairing { until: Some(until) } => self.wake_vcpu_at(env, *until),
            Part::Pairing { until: None } | Part::Standby(_) => {}
            Part::Reading(_) | Part::Meeting { .. } | Part::ClaimingFirst { .. } => {}
            Part::Halted | Part::Over => {}
        }
    }

    /// A frame comes to the tap.
    pub(crate) fn receive(&mut self, env: &mut Env, bytes: Bytes) {
        self.card.receive(env, &self.desk, bytes);
    }

    /// The arbiter answers.
    pub(crate) fn answered(&mut self, env: &mut Env, answered: Answered) {
        if self.seat.settles(answered.attempt) {
            self.hear_arbiter(env, answered.answer);
        }
    }

    /// An attempt to ask the arbiter is given up.
    pub(crate) fn give_up(&mut self, env: &mut Env, attempt: u64) {
        if self.seat.settles(attempt) {
            env.tell(self.desk.host, || "gets no answer from the arbiter".into());
            self.hear_arbiter(env, Answer::Failed);
        }
    }

    fn hear_arbiter(&mut self, env: &mut Env, answer: Answer) {
        match self.part {
            Part::Reading(_) | Part::ClaimingFirst { .. } => self.start_on(env, answer),
            Part::Settling(_) => self.hear_verdict(env, answer),
            Part::Pairing { .. } => self.begin_with_spare(env, answer),
            _ => {}
        }
    }

    /// A word of the other host.
    pub(crate) fn arrive(&mut self, env: &mut Env, arrival: Arrival, word: Word) {
        let word = match word {
            Word::State(word) => {
                self.state.push_back((arrival, word));
                return env.ring(self.desk.host, self.desk.boot, Actor::Driver);
            }
            word => word,
        };
        match &mut self.pair {
            Pair::Nobody => {}
            Pair::Dialing(dialing) => dialing.arrive(arrival, word),
            Pair::Listening(listening) => listening.arrive(arrival, word),
            Pair::Primary(end) => end.arrive(arrival, word),
            Pair::Backup(end) => end.arrive(arrival, word),
        }
        env.ring(self.desk.host, self.desk.boot, Actor::Driver);
    }

    fn ask(&mut self, env: &mut Env, question: Question) {
        self.seat.ask(env, &self.desk, &self.me, question);
    }

    fn ring(&self, env: &mut Env, actor: Actor) {
        env.ring(self.desk.host, self.desk.boot, actor);
    }

    fn wake_vcpu_at(&self, env: &mut Env, at: Moment) {
        env.agenda
            .wake(at.max(env.now), self.desk.host, self.desk.boot, Actor::Vcpu);
    }

    fn becomes(&mut self, env: &mut Env, part: Part) {
        self.part = part;
        self.since = env.now;
    }

    fn show_mode(&mut self, env: &mut Env, mode: Mode) {
        self.card.shown.set_mode(mode);
        self.drive.shown.set_mode(mode);
        self.ring(env, Actor::Net);
        self.ring(env, Actor::Disk);
    }

    /// The process ends, and its device processes with it.
    fn end(&mut self, env: &mut Env, why: &str) {
        env.tell(self.desk.host, || format!("ends: {why}"));
        self.hang_up(env);
        self.show_mode(env, Mode::Halted);
        self.becomes(env, Part::Over);
    }

    /// What the guest's clock would show now.
    fn guest_now(&self, env: &Env) -> GuestTime {
        let (shown, since) = self.time;
        let passed = self.desk.now(env).saturating_since(since);
        GuestTime::new(shown.get() + u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Does it talk to the outside, and has it nobody to protect it?
    pub(crate) fn is_alone(&self) -> bool {
        matches!((&self.part, &self.pair), (Part::Live, Pair::Nobody))
    }

    /// May something be on its way out that it let go?
    pub(crate) fn has_spoken(&self) -> bool {
        self.card.shown.mode() != Mode::Quiet || self.drive.shown.mode() != Mode::Quiet
    }

    /// How much of the log of a session it received as a backup, if it still has it.
    pub(crate) fn holds(&self, session: ConnId) -> Option<LogOffset> {
        match (&self.pair, &self.part) {
            (Pair::Backup(end), _) if end.conn == session => end.received(),
            (_, Part::Settling(settling)) => settling.holds(session),
            _ => None,
        }
    }
}

/// What the pieces of a delta may come to.
const DELTA_BYTES_MAX: usize = 64;
