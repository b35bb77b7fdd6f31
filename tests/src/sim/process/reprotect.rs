//! A host that lives alone makes a backup of a spare, in the order of I13: outputs wait, the spare listens, the next
//! term is claimed, the log begins with a tick. As `vmm/src/run/reprotect.rs` and `vmm/src/transfer/source.rs` do it;
//! pages are not modelled, only how long they take.

use lockstep_protocol::ids::{LogOffset, Position};
use lockstep_protocol::message::Role;
use lockstep_protocol::record::Input;
use lockstep_protocol::session::Parting;
use lockstep_protocol::takeover::Verdict;

use super::driver::Dialing;
use super::{Pair, Part, Process};
use crate::sim::agenda::Actor;
use crate::sim::arbiter::{Answer, Question, verdict_of};
use crate::sim::clock::Moment;
use crate::sim::device::Mode;
use crate::sim::env::Env;
use crate::sim::wires::{Arrival, ConnId, Copied, Place, StateWord, Word};

/// How long a spare may take for a round.
const ROUND_WAIT: u64 = 2_000_000_000;
/// How long a spare may take to hold the last pieces; the guest stands still meanwhile.
const HELD_WAIT: u64 = 500_000_000;
/// How long a spare that holds everything may take to begin the session.
const SESSION_WAIT: u64 = 2_000_000_000;

/// The search for a spare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Search {
    /// Nobody has knocked.
    Idle,
    /// Memory is copied while the guest runs; so many rounds are left.
    Copying { to: Spare, rounds: u64, until: Moment },
    /// The guest shall stand still in its next window.
    WantsStop(Spare),
    /// It stands still until the spare holds it, or until then.
    Stopped {
        to: Spare,
        start: LogOffset,
        until: Moment,
    },
}

/// A spare that was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spare {
    conn: ConnId,
    place: Place,
    attempt: u32,
}

impl Process {
    /// A word of a spare.
    pub(super) fn hear_spare(&mut self, env: &mut Env, arrival: Arrival, word: &StateWord) {
        if !self.is_alone() {
            return;
        }
        let here = |to: Spare, attempt| to.conn == arrival.conn && to.attempt == attempt;
        match (self.search, word) {
            (search, StateWord::Knock(attempt)) if self.powered => {
                let to = Spare {
                    conn: arrival.conn,
                    place: arrival.from,
                    attempt: *attempt,
                };
                let free = match search {
                    Search::Idle => true,
                    Search::Copying { to, until, .. } => to.conn == arrival.conn || env.now >= until,
                    Search::WantsStop(_) | Search::Stopped { .. } => false,
                };
                if free {
                    let rounds = env.dice.below(3);
                    self.copy_round(env, to, rounds);
                }
            }
            (Search::Copying { to, rounds, .. }, StateWord::InPlace(attempt)) if here(to, *attempt) => {
                match rounds.checked_sub(1) {
                    Some(rounds) => self.copy_round(env, to, rounds),
                    None => {
                        self.search = Search::WantsStop(to);
                        self.ring(env, Actor::Vcpu);
                    }
                }
            }
            (Search::Stopped { to, start, .. }, StateWord::Held(attempt, upto, position))
                if here(to, *attempt) =>
            {
                self.pair_with(env, to, start, (*upto, *position));
            }
            _ => {}
        }
    }

    fn copy_round(&mut self, env: &mut Env, to: Spare, rounds: u64) {
        let until = env.now.later(ROUND_WAIT);
        self.search = Search::Copying { to, rounds, until };
        env.send(to.conn, self.desk.host, Word::State(StateWord::Round(to.attempt)));
    }

    /// Must the guest not run on now? Called in a window that was served.
    pub(super) fn stands_still(&mut self, env: &mut Env) -> bool {
        match self.search {
            Search::WantsStop(to) if self.is_alone() => {
                self.stop_for(env, to);
                true
            }
            Search::Stopped { until, .. } if self.is_alone() && env.now < until => {
                self.wake_vcpu_at(env, until);
                true
            }
            Search::WantsStop(_) | Search::Stopped { .. } => {
                self.search = Search::Idle;
                false
            }
            Search::Idle | Search::Copying { .. } => false,
        }
    }

    /// The machine is captured and sent.
    fn stop_for(&mut self, env: &mut Env, to: Spare) {
        env.tell(self.desk.host, || "stands still for a spare".into());
        let copied = Copied {
            attempt: to.attempt,
            term: self.desk.term.next(),
            start: self.alone_end,
            guest: self.guest.clone(),
        };
        let until = env.now.later(HELD_WAIT);
        self.search = Search::Stopped {
            to,
            start: self.alone_end,
            until,
        };
        let machine = Word::State(StateWord::Machine(Box::new(copied)));
        env.send(to.conn, self.desk.host, machine);
        self.wake_vcpu_at(env, until);
    }

    /// The spare holds everything: outputs wait from here on, and the session begins.
    fn pair_with(&mut self, env: &mut Env, to: Spare, start: LogOffset, held: (LogOffset, Position)) {
        self.search = Search::Idle;
        if held != (start, self.guest.position()) {
            return self.stay_alone(env, "the spare holds something else");
        }
        self.card.shown.await_backup(start);
        self.drive.shown.await_backup(start);
        let hello = self.hello(env, Role::Primary, self.desk.term.next(), start);
        self.pair = Pair::Dialing(Dialing::new(hello, to.place));
        let until = env.now.later(SESSION_WAIT);
        self.becomes(env, Part::Pairing { until: Some(until) });
        self.wake_vcpu_at(env, until);
        self.ring(env, Actor::Driver);
    }

    /// The spare has begun the session: now the term is claimed.
    pub(super) fn claim_with_spare(&mut self, env: &mut Env) {
        self.becomes(env, Part::Pairing { until: None });
        self.ask(env, Question::Claim(self.desk.term));
    }

    /// The arbiter answered, or did not. Whatever came of a claim without an answer: no record leaves, so the spare
    /// claims nothing.
    pub(super) fn begin_with_spare(&mut self, env: &mut Env, answer: Answer) {
        match verdict_of(answer, self.desk.term) {
            Some(Verdict::Granted { term }) => {
                env.tell(self.desk.host, || format!("begins term {term} with a spare"));
                env.oracle.tally.reprotections += 1;
                self.desk.term = term;
                self.desk.copied_at = Some(self.alone_end);
                self.becomes(env, Part::Live);
                let time = self.guest_now(env);
                self.enter(env, &[Input::Tick { time }]);
                self.flush(env);
                self.run_on(env);
            }
            Some(Verdict::Refused { .. }) => {
                env.oracle.tally.halts += 1;
                self.show_mode(env, Mode::Halted);
                self.hang_up(env);
                self.becomes(env, Part::Halted);
            }
            None => self.stay_alone(env, "the arbiter did not give the term"),
        }
    }

    /// The spare protects nothing; this host goes on in the term that it holds.
    pub(super) fn stay_alone(&mut self, env: &mut Env, why: &str) {
        env.tell(self.desk.host, || format!("goes on alone: {why}"));
        if let Pair::Primary(end) = &self.pair {
            env.send(end.conn, self.desk.host, Word::Goodbye(Parting::Stopped));
        }
        self.pair = Pair::Nobody;
        self.desk.session = None;
        self.card.shown.go_live_alone();
        self.drive.shown.go_live_alone();
        self.show_mode(env, Mode::Live);
        self.becomes(env, Part::Live);
        self.ring(env, Actor::Vcpu);
    }
}
