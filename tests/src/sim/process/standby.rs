//! A spare: it knocks at the other hosts until one that runs the VM alone copies it here, and is a backup like any other
//! from then on. As `vmm/src/run/standby.rs` and `vmm/src/transfer/intake.rs` do it.

use lockstep_protocol::ids::LogOffset;
use lockstep_protocol::message::Role;

use super::driver::Listening;
use super::{Pair, Part, Process};
use crate::sim::agenda::Actor;
use crate::sim::clock::Moment;
use crate::sim::env::{Env, HOSTS};
use crate::sim::guest::{Exit, Guest};
use crate::sim::wires::{Arrival, ConnId, Copied, StateWord, Word};

/// How long to wait before knocking again.
const KNOCK_AGAIN: (u64, u64) = (100_000_000, 400_000_000);
/// A copy that does not go on for so long is given up.
const PATIENCE: u64 = 2_000_000_000;
/// How long the host that was copied from may take to begin the session.
const SESSION_WAIT: u64 = 5_000_000_000;

/// A spare's search.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Knocking {
    /// A connection to each host, as soon as it was knocked at.
    doors: [Option<ConnId>; HOSTS],
    attempt: u32,
    /// Nothing is knocked at before.
    next: Moment,
}

impl Process {
    /// Looks for a VM, from scratch.
    pub(super) fn stand_by(&mut self, env: &mut Env) {
        self.pair = Pair::Nobody;
        self.guest = Guest::new();
        (self.powered, self.stalled) = (false, false);
        self.window = None;
        // Words of what was tried before mean nothing to this search.
        let attempt = env.dice.any() as u32;
        self.becomes(
            env,
            Part::Standby(Knocking {
                attempt,
                ..Knocking::default()
            }),
        );
        self.ring(env, Actor::Driver);
    }

    /// Knocks at some host, if it is time to.
    pub(super) fn knock(&mut self, env: &mut Env) {
        let (here, hosts) = (self.desk.host, env.plan.hosts());
        let Part::Standby(knocking) = &mut self.part else {
            return;
        };
        if env.now >= knocking.next {
            let there = (here + 1 + env.dice.below(hosts as u64 - 1) as usize) % hosts;
            let door = *knocking.doors[there].get_or_insert_with(|| env.wires.connect(here, there));
            knocking.attempt = knocking.attempt.wrapping_add(1);
            let knock = StateWord::Knock(knocking.attempt);
            knocking.next = env.now.later(env.dice.between(KNOCK_AGAIN));
            env.send(door, here, Word::State(knock));
        }
        let next = knocking.next;
        self.wake_driver_at(env, next);
    }

    /// Words that came over connections for copies.
    pub(super) fn hear_state(&mut self, env: &mut Env) {
        while let Some((arrival, word)) = self.state.pop_front() {
            match &self.part {
                Part::Standby(_) => self.hear_source(env, arrival, word),
                _ => self.hear_spare(env, arrival, &word),
            }
        }
    }

    fn hear_source(&mut self, env: &mut Env, arrival: Arrival, word: StateWord) {
        let Part::Standby(knocking) = &mut self.part else {
            return;
        };
        match word {
            StateWord::Round(attempt) if attempt == knocking.attempt => {
                knocking.next = env.now.later(PATIENCE);
                let answer = Word::State(StateWord::InPlace(attempt));
                env.send(arrival.conn, self.desk.host, answer);
            }
            StateWord::Machine(copied) if copied.attempt == knocking.attempt => {
                self.take_in(env, arrival.conn, *copied);
            }
            _ => {}
        }
    }

    /// The machine came whole: it stands in the open window in which it was captured.
    fn take_in(&mut self, env: &mut Env, conn: ConnId, copied: Copied) {
        let Copied {
            attempt,
            term,
            start,
            guest,
        } = copied;
        env.tell(self.desk.host, || format!("holds the VM, for term {term}"));
        let position = guest.position();
        self.guest = guest;
        self.powered = true;
        self.window = Some(Exit::default());
        self.alone_end = LogOffset::ZERO;
        self.pair = Pair::Listening(Listening::new(self.hello(env, Role::Backup, term, start)));
        let until = env.now.later(SESSION_WAIT);
        self.becomes(env, Part::Joining { until });
        self.wake_vcpu_at(env, until);
        let held = StateWord::Held(attempt, start, position);
        env.send(conn, self.desk.host, Word::State(held));
    }
}
