//! The process of the network card: takes orders, copies frames, holds them and lets them go; takes frames in.

use std::collections::VecDeque;

use bytes::Bytes;
use lockstep_protocol::outbox::{Outbox, OutboxLimit};

use super::{Desk, Made, Mode, Shown, depart};
use crate::sim::agenda::Actor;
use crate::sim::chain::Chain;
use crate::sim::env::Env;

/// How many frames wait for the guest before the tap drops them.
const FRAMES_MAX: usize = 16;
/// Few enough that a full outbox is met in many worlds.
const LIMIT: OutboxLimit = OutboxLimit {
    outputs: 6,
    bytes: 6 * WEIGHT,
};
const WEIGHT: usize = 64;

/// One process.
#[derive(Debug)]
pub(crate) struct Card {
    /// What the VMM shows it.
    pub(crate) shown: Shown,
    /// The mode that it followed last.
    mode: Mode,
    /// Orders that it has not taken.
    pub(crate) orders: VecDeque<Made>,
    held: Outbox<Made>,
    /// Frames that the VMM has not taken, oldest first.
    pub(crate) staged: VecDeque<Bytes>,
    /// Chains that it is done with and that the VMM has not given back.
    pub(crate) returned: u16,
}

impl Card {
    /// A process that is quiet until its VMM says otherwise.
    pub(crate) fn new() -> Self {
        Self {
            shown: Shown::default(),
            mode: Mode::Quiet,
            orders: VecDeque::new(),
            held: Outbox::new(LIMIT),
            staged: VecDeque::new(),
            returned: 0,
        }
    }

    /// A frame comes in. Only a host that is live takes it.
    pub(crate) fn receive(&mut self, env: &mut Env, desk: &Desk, bytes: Bytes) {
        if self.shown.mode() == Mode::Live && self.staged.len() < FRAMES_MAX {
            self.staged.push_back(bytes);
            env.ring(desk.host, desk.boot, Actor::Vcpu);
        }
    }

    /// Does all there is to do.
    pub(crate) fn settle(&mut self, env: &mut Env, desk: &Desk, chain: Option<&Chain>) {
        self.follow_mode();
        self.take_orders(env, desk);
        loop {
            let gate = self.shown.gate();
            let Some(made) = self.held.poll_release(&gate, desk.now(env)) else {
                break;
            };
            depart(env, desk, &gate, made, chain);
            self.take_orders(env, desk);
        }
    }

    fn follow_mode(&mut self) {
        if self.shown.mode() == Mode::Halted && self.mode != Mode::Halted {
            self.held.discard();
        }
        self.mode = self.shown.mode();
    }

    fn take_orders(&mut self, env: &mut Env, desk: &Desk) {
        while self.held.has_room(WEIGHT) {
            let Some(made) = self.orders.pop_front() else {
                break;
            };
            // Whatever becomes of the frame, its chain goes back: the guest sees the same on every host.
            self.returned += 1;
            env.ring(desk.host, desk.boot, Actor::Vcpu);
            if self.mode != Mode::Halted {
                let held = self.held.hold(made.needs, WEIGHT, made);
                held.expect("there was room a moment ago");
            }
        }
    }

    /// Outputs that are held.
    pub(crate) fn held(&self) -> usize {
        self.held.len() + self.orders.len()
    }

    /// Would anything leave if the process looked now, as far as acks go?
    pub(crate) fn may_release(&self) -> bool {
        self.held
            .waiting_for()
            .is_some_and(|needs| needs <= self.shown.gate().acked)
    }
}
