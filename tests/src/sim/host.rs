//! A simulated host: a clock, a power supply, and the process that runs on it, if one does.

use lockstep_protocol::ids::{Holder, Incarnation, NodeName, Term};

use super::agenda::{Actor, Boot};
use super::clock::{HostClock, Moment};
use super::device::Desk;
use super::env::{Env, NAMES};
use super::process::{Part, Process, StartAs};

/// One host.
#[derive(Debug)]
pub(crate) struct Host {
    index: usize,
    /// Its clock.
    pub(crate) clock: HostClock,
    /// What runs on it.
    pub(crate) process: Option<Box<Process>>,
    /// From when on something can be started on it.
    pub(crate) ready_at: Moment,
    boots: Boot,
    /// Until when its threads and processes are not run.
    paused: [Moment; 4],
}

/// What a host is called.
pub(crate) fn node_of(host: usize) -> NodeName {
    NodeName::new(NAMES[host]).expect("a letter is a name")
}

impl Host {
    /// A host that has power and on which nothing runs.
    pub(crate) fn new(index: usize, clock: HostClock) -> Self {
        Self {
            index,
            clock,
            process: None,
            ready_at: Moment::default(),
            boots: 0,
            paused: [Moment::default(); 4],
        }
    }

    /// The operator starts the node. Whatever was left of an earlier start is gone.
    pub(crate) fn start(&mut self, env: &mut Env, role: StartAs) {
        self.boots += 1;
        env.agenda.silence(self.index);
        let desk = Desk {
            host: self.index,
            boot: self.boots,
            clock: self.clock,
            term: Term::ZERO,
            session: None,
            copied_at: None,
        };
        let me = Holder {
            node: node_of(self.index),
            incarnation: Incarnation::new(u128::from(env.dice.any())),
        };
        self.process = Some(Box::new(Process::start(env, desk, me, role)));
    }

    /// The host loses power. Nothing is said to anybody.
    pub(crate) fn crash(&mut self, env: &mut Env, ready_at: Moment) {
        env.tell(self.index, || "loses power".into());
        self.process = None;
        self.boots += 1;
        self.ready_at = ready_at;
        self.paused = [Moment::default(); 4];
        env.agenda.silence(self.index);
    }

    /// The process of that start, if it is still there.
    pub(crate) fn process_of(&mut self, boot: Boot) -> Option<&mut Process> {
        self.process
            .as_deref_mut()
            .filter(|process| process.desk.boot == boot)
    }

    /// Nothing of this host runs until then.
    pub(crate) fn pause(&mut self, until: Moment) {
        self.paused = [until; 4];
    }

    /// One of its threads or processes does not run until then.
    pub(crate) fn stall(&mut self, actor: Actor, until: Moment) {
        let paused = &mut self.paused[actor as usize];
        *paused = until.max(*paused);
    }

    /// Everything runs again.
    pub(crate) fn resume(&mut self) {
        self.paused = [Moment::default(); 4];
    }

    /// Until when that thread or process does not run.
    pub(crate) fn paused_until(&self, actor: Actor) -> Moment {
        self.paused[actor as usize]
    }

    /// The process is killed. Its host stays up.
    pub(crate) fn remove(&mut self, env: &mut Env) {
        self.process = None;
        self.boots += 1;
        env.agenda.silence(self.index);
    }

    /// Which host it is.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Is nothing there that could ever live again by itself, but perhaps a spare that looks for a VM?
    pub(crate) fn has_no_vm(&self, env: &Env) -> bool {
        let stands_by = |process: &Process| matches!(process.part, Part::Standby(_));
        self.is_dead(env) || self.process.as_deref().is_some_and(stands_by)
    }

    /// Is nothing there that could ever live again by itself, and has all that it said left?
    pub(crate) fn is_dead(&self, env: &Env) -> bool {
        let said = env.plan.slowest_departure();
        let over = |process: &Process| {
            matches!(process.part, Part::Halted | Part::Over) && env.now > process.since.later(said)
        };
        env.now >= self.ready_at && self.process.as_deref().is_none_or(over)
    }
}
