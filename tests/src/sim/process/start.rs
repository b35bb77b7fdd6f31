//! How a node starts: as `vmm/src/run/start.rs` and the beginnings of `live.rs` and `shadow.rs` do it. The register is
//! read, the other host is met, the first term is claimed, and only then the gates open.

use lockstep_protocol::ids::{LogOffset, Term};
use lockstep_protocol::message::{Hello, Role};
use lockstep_protocol::takeover::{Verdict, may_begin};

use super::driver::{Dialing, Listening};
use super::{Pair, Part, Process};
use crate::sim::agenda::Actor;
use crate::sim::arbiter::{Answer, Question, verdict_of};
use crate::sim::device::Mode;
use crate::sim::env::{Env, PAIRED};
use crate::sim::host::node_of;

/// What an operator starts a node as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartAs {
    /// With a backup.
    Primary,
    /// For a primary.
    Backup,
    /// Without a backup.
    Alone,
    /// For a VM that runs elsewhere without one.
    Standby,
}

impl Process {
    /// The arbiter said something while this process starts.
    pub(super) fn start_on(&mut self, env: &mut Env, answer: Answer) {
        match (&self.part, answer) {
            (Part::Reading(role), Answer::Newest(newest)) => {
                let role = *role;
                let peer = (role != StartAs::Alone).then(|| node_of(PAIRED - 1 - self.desk.host));
                let starting: Vec<_> = peer.iter().chain([&self.me.node]).collect();
                if !may_begin(newest.as_ref().map(|newest| &newest.holder), &starting) {
                    return self.end(env, "another host may still be running the VM");
                }
                self.start_as(env, role, newest.map_or(Term::ZERO, |tenure| tenure.term));
            }
            (Part::ClaimingFirst { expected, alone }, answer) => {
                let (expected, alone) = (*expected, *alone);
                match verdict_of(answer, expected) {
                    Some(Verdict::Granted { term }) if alone && expected > Term::ZERO => {
                        self.outlast_leases(env, term);
                    }
                    Some(Verdict::Granted { term }) => self.go_live(env, term, alone),
                    Some(Verdict::Refused { .. }) => self.end(env, "another host claimed its first term"),
                    None => self.end(env, "the arbiter did not give it its first term"),
                }
            }
            _ => self.end(env, "the arbiter cannot be asked"),
        }
    }

    fn start_as(&mut self, env: &mut Env, role: StartAs, newest: Term) {
        match role {
            StartAs::Primary => {
                let hello = self.hello(env, Role::Primary, newest.next(), LogOffset::ZERO);
                self.pair = Pair::Dialing(Dialing::new(hello, PAIRED - 1 - self.desk.host));
                self.becomes(env, Part::Meeting { newest });
                self.ring(env, Actor::Driver);
            }
            StartAs::Backup => {
                self.desk.term = newest.next();
                let hello = self.hello(env, Role::Backup, newest.next(), LogOffset::ZERO);
                self.pair = Pair::Listening(Listening::new(hello));
                self.becomes(env, Part::Meeting { newest });
            }
            StartAs::Alone => self.claim_first(env, newest, true),
            StartAs::Standby => unreachable!("a spare does not ask for the newest term"),
        }
    }

    /// Only now, as a primary: a host that answers as a backup is certainly not live, and no third one holds the last term.
    pub(super) fn claim_first(&mut self, env: &mut Env, expected: Term, alone: bool) {
        self.becomes(env, Part::ClaimingFirst { expected, alone });
        self.ask(env, Question::Claim(expected));
    }

    /// An earlier start of this node may have won its term and ended before it lived; the other host may speak until
    /// its lease is over (I7).
    fn outlast_leases(&mut self, env: &mut Env, term: Term) {
        let (_, began) = self.time;
        let until = self.desk.clock.moment(env.plan.timing.lease_over(began));
        self.becomes(env, Part::Outlasting { term, until });
        self.wake_vcpu_at(env, until);
    }

    pub(super) fn go_live(&mut self, env: &mut Env, term: Term, alone: bool) {
        env.tell(self.desk.host, || {
            format!("is live in term {term}, alone: {alone}")
        });
        self.desk.term = term;
        if alone {
            self.card.shown.go_live_alone();
            self.drive.shown.go_live_alone();
            env.oracle.tally.lone_starts += 1;
            env.oracle.note_alone(self.desk.host);
        }
        self.show_mode(env, Mode::Live);
        self.becomes(env, Part::Live);
        self.ring(env, Actor::Vcpu);
    }

    pub(super) fn hello(&self, env: &Env, role: Role, term: Term, start: LogOffset) -> Hello {
        Hello {
            term,
            start,
            timing: env.plan.timing,
            ..Hello::bare(self.me.node.clone(), role)
        }
    }
}
