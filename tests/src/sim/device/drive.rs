//! The process of the shared disk: answers reads at once, holds writes, and issues them one after the other.

use std::collections::VecDeque;

use bytes::Bytes;
use lockstep_protocol::ids::Head;
use lockstep_protocol::outbox::{Outbox, OutboxLimit};

use super::{Desk, Made, Mode, Output, Shown, depart};
use crate::sim::agenda::Actor;
use crate::sim::chain::Chain;
use crate::sim::env::Env;
use crate::sim::guest::{Block, Work};

/// What one write weighs in the outbox.
const WEIGHT: usize = 512;

/// One process.
#[derive(Debug)]
pub(crate) struct Drive {
    /// What the VMM shows it.
    pub(crate) shown: Shown,
    mode: Mode,
    /// Orders that it has not taken.
    pub(crate) orders: VecDeque<Made>,
    held: Outbox<Made>,
    /// Released, and not complete.
    issuing: Option<Issuing>,
    /// Completions that the VMM has not taken: the chain and what goes into it.
    pub(crate) staged: VecDeque<(Head, Bytes)>,
}

/// A write that was let go.
#[derive(Clone, Copy, Debug)]
enum Issuing {
    /// It waits for the system call, before which the gate is looked at once more.
    Due(Made),
    /// The system call runs.
    Called,
}

impl Drive {
    /// A process that is quiet until its VMM says otherwise.
    pub(crate) fn new() -> Self {
        Self {
            shown: Shown::default(),
            mode: Mode::Quiet,
            orders: VecDeque::new(),
            held: Outbox::new(OutboxLimit::default()),
            issuing: None,
            staged: VecDeque::new(),
        }
    }

    /// Does all there is to do.
    pub(crate) fn pump(&mut self, env: &mut Env, desk: &Desk, chain: Option<&Chain>) {
        self.follow_mode();
        if self.mode != Mode::Live {
            return;
        }
        while let Some(made) = self.orders.pop_front() {
            self.take(env, desk, made);
        }
        if self.issuing.is_none() {
            let gate = self.shown.gate();
            // Between the outbox and the system call the process may lose its processor for any time.
            let interrupted = env.dice.chance(200);
            self.issuing = self.held.poll_release(&gate, desk.now(env)).map(Issuing::Due);
            if interrupted && self.issuing.is_some() {
                return env.ring(desk.host, desk.boot, Actor::Disk);
            }
        }
        if let Some(Issuing::Due(made)) = self.issuing {
            self.issue(env, desk, made, chain);
        }
    }

    fn follow_mode(&mut self) {
        if self.shown.mode() == Mode::Halted && self.mode != Mode::Halted {
            self.held.discard();
            self.orders.clear();
            self.issuing = None;
        }
        if self.mode != Mode::Halted {
            self.mode = self.shown.mode();
        }
    }

    fn take(&mut self, env: &mut Env, desk: &Desk, made: Made) {
        let Output::Write(job) = made.output else {
            unreachable!("a disk is ordered to do what a disk does")
        };
        match job.work {
            // A read is an input: it waits for nobody's leave.
            Work::Read(sector) => {
                let found = env.disk.read(sector);
                self.stage(env, desk, job.head, Bytes::copy_from_slice(&found.answer()));
            }
            Work::Write(..) => {
                let held = self.held.hold(made.needs, WEIGHT, made);
                held.expect("a disk's queue is shorter than its outbox");
            }
        }
    }

    /// The last look before the system call that changes the disk, which takes its time.
    fn issue(&mut self, env: &mut Env, desk: &Desk, made: Made, chain: Option<&Chain>) {
        let gate = self.shown.gate();
        if !gate.lets(made.needs, desk.now(env)) {
            return;
        }
        depart(env, desk, &gate, made, chain);
        self.issuing = Some(Issuing::Called);
    }

    /// The system call is back.
    pub(crate) fn landed(&mut self, env: &mut Env, desk: &Desk, head: Head) {
        if matches!(self.issuing, Some(Issuing::Called)) {
            self.issuing = None;
            self.stage(env, desk, head, Bytes::copy_from_slice(&Block::written()));
            env.ring(desk.host, desk.boot, Actor::Disk);
        }
    }

    fn stage(&mut self, env: &mut Env, desk: &Desk, head: Head, bytes: Bytes) {
        self.staged.push_back((head, bytes));
        env.ring(desk.host, desk.boot, Actor::Vcpu);
    }

    /// Outputs that are held or being issued.
    pub(crate) fn held(&self) -> usize {
        self.held.len() + self.orders.len() + usize::from(self.issuing.is_some())
    }

    /// Would anything leave if the process looked now, as far as acks go?
    pub(crate) fn may_release(&self) -> bool {
        let waiting = match self.issuing {
            Some(Issuing::Due(made)) => Some(made.needs),
            Some(Issuing::Called) => None,
            None => self.held.waiting_for(),
        };
        waiting.is_some_and(|needs| needs <= self.shown.gate().acked)
    }
}
