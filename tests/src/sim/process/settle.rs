//! After a lost peer: asks the arbiter what the machines want claimed, and lives or halts as they say. It does what
//! `vmm/src/ft/takeover.rs` and the second half of `shadow.rs` do.
//!
//! A backup's machine is polled for deeds while its log is still being replayed: that it has none then is for the
//! machine to see to, not for whoever drives it.

use lockstep_protocol::ids::{LogOffset, Position, Term};
use lockstep_protocol::session::{Parting, PeerLost};
use lockstep_protocol::takeover::{Claiming, Deed, Takeover, Verdict, VerdictFault};
use lockstep_protocol::time::Instant;

use super::{Flaw, Following, Part, Process};
use crate::sim::agenda::Actor;
use crate::sim::arbiter::{Answer, Question, verdict_of};
use crate::sim::device::{Made, Mode, Output};
use crate::sim::env::Env;
use crate::sim::wires::ConnId;

/// A claim under way.
#[derive(Debug)]
pub(crate) struct Settling {
    pub(super) claimant: Claimant,
}

/// Who claims.
#[derive(Debug)]
pub(super) enum Claimant {
    /// A primary that lost its backup.
    Primary(Claiming),
    /// A backup that lost its primary.
    Backup(Box<Survivor>),
}

/// A backup that lost its primary.
#[derive(Debug)]
pub(super) struct Survivor {
    pub(super) session: ConnId,
    pub(super) takeover: Takeover,
    pub(super) following: Following,
    pub(super) why: PeerLost,
    pub(super) replaying: bool,
    /// When the primary was last heard.
    pub(super) heard: Instant,
}

impl Claimant {
    fn poll_deed(&mut self, now: Instant) -> Option<Deed> {
        match self {
            Self::Primary(claiming) => claiming.poll_deed(now),
            Self::Backup(survivor) => survivor.takeover.poll_deed(now),
        }
    }

    fn handle_verdict(&mut self, verdict: Verdict) -> Result<(), VerdictFault> {
        match self {
            Self::Primary(claiming) => claiming.handle_verdict(verdict),
            Self::Backup(survivor) => survivor.takeover.handle_verdict(verdict),
        }
    }

    fn handle_failed(&mut self, now: Instant) {
        match self {
            Self::Primary(claiming) => claiming.handle_claim_failed(now),
            Self::Backup(survivor) => survivor.takeover.handle_claim_failed(now),
        }
    }

    fn next_timeout(&self) -> Instant {
        match self {
            Self::Primary(claiming) => claiming.next_timeout(),
            Self::Backup(survivor) => survivor.takeover.next_timeout(),
        }
    }

    fn term(&self) -> Term {
        match self {
            Self::Primary(claiming) => claiming.term(),
            Self::Backup(survivor) => survivor.takeover.term(),
        }
    }

    fn is_replaying(&self) -> bool {
        matches!(self, Self::Backup(survivor) if survivor.replaying)
    }
}

impl Settling {
    /// Is it a backup that received no record of its log?
    fn is_without_log(&self) -> bool {
        matches!(&self.claimant, Claimant::Backup(survivor)
            if survivor.takeover.end() == survivor.following.start)
    }

    /// How much of the log of a session a survivor holds.
    pub(super) fn holds(&self, session: ConnId) -> Option<LogOffset> {
        match &self.claimant {
            Claimant::Backup(survivor) if survivor.session == session => Some(survivor.takeover.end()),
            Claimant::Backup(_) | Claimant::Primary(_) => None,
        }
    }
}

impl Process {
    /// Does what is to be done now, if anything.
    pub(super) fn settle(&mut self, env: &mut Env) {
        let now = self.desk.now(env);
        let Part::Settling(settling) = &mut self.part else {
            return;
        };
        match settling.claimant.poll_deed(now) {
            Some(Deed::Claim { expected }) => {
                env.tell(self.desk.host, || format!("claims the term after {expected}"));
                if settling.is_without_log() {
                    env.accuse(
                        "I13",
                        self.desk.host,
                        &"it claims a term, but has no record of the log",
                    );
                }
                self.ask(env, Question::Claim(expected));
            }
            Some(Deed::Promote { term }) => return self.live_on(env, term),
            Some(Deed::Halt { by, term }) => {
                env.tell(self.desk.host, || {
                    format!("halts: {} lives in term {term}", by.node)
                });
                env.oracle.tally.halts += 1;
                self.show_mode(env, Mode::Halted);
                return self.becomes(env, Part::Halted);
            }
            None if settling.claimant.is_replaying() => return self.replay_rest(env),
            None => {}
        }
        if let Part::Settling(settling) = &self.part {
            let next = match settling.claimant.is_replaying() {
                true => env.now.later(1),
                false => self.desk.clock.moment(settling.claimant.next_timeout()),
            };
            self.wake_vcpu_at(env, next);
        }
    }

    /// The arbiter answered a claim, or did not.
    pub(super) fn hear_verdict(&mut self, env: &mut Env, answer: Answer) {
        let now = self.desk.now(env);
        let Part::Settling(settling) = &mut self.part else {
            return;
        };
        match verdict_of(answer, settling.claimant.term()) {
            Some(verdict) => {
                env.tell(self.desk.host, || format!("hears from the arbiter: {verdict:?}"));
                if let Err(fault) = settling.claimant.handle_verdict(verdict) {
                    env.accuse("I10", self.desk.host, &fault);
                }
            }
            None => settling.claimant.handle_failed(now),
        }
        self.ring(env, Actor::Vcpu);
    }

    /// Lives, alone.
    fn live_on(&mut self, env: &mut Env, term: Term) {
        let Part::Settling(settling) = std::mem::replace(&mut self.part, Part::Live) else {
            return;
        };
        self.since = env.now;
        env.tell(self.desk.host, || format!("lives alone in term {term}"));
        self.desk.term = term;
        self.desk.session = None;
        self.desk.copied_at = None;
        self.card.shown.go_live_alone();
        self.drive.shown.go_live_alone();
        env.oracle.note_alone(self.desk.host);
        match settling.claimant {
            Claimant::Primary(_) => env.oracle.tally.survivals += 1,
            Claimant::Backup(survivor) => self.take_over(env, &survivor),
        }
        self.show_mode(env, Mode::Live);
        self.ring(env, Actor::Vcpu);
    }

    /// What only a backup has to do: its guest goes on where the log ends, and what is in flight is ordered again.
    fn take_over(&mut self, env: &mut Env, survivor: &Survivor) {
        env.oracle.tally.takeovers += 1;
        if let Err(sentence) = env.oracle.history.taken_over(self.guest.chain()) {
            env.accuse("I4", self.desk.host, &sentence);
        }
        let furthest = env.oracle.terms.furthest(survivor.takeover.term());
        if furthest.is_some_and(|furthest| furthest > self.guest.position()) {
            let sentence = format!(
                "it lives at position {}, but an output left that was made at a later one",
                self.guest.position()
            );
            env.accuse("I4", self.desk.host, &sentence);
        }
        if let (Flaw::Hidden(at), Some(furthest)) = (self.flaw, furthest)
            && furthest > at
        {
            let sentence = format!(
                "it lives with a bit that flipped at position {at}, but an output left that was made at {furthest}"
            );
            env.accuse("I17", self.desk.host, &sentence);
        }
        self.powered = true;
        self.alone_end = survivor.takeover.end();
        let since = survivor.heard;
        self.time = (self.guest.time(), since);
        // What was kicked in this very window is in flight like everything else: it is ordered once.
        if let Some(exit) = &mut self.window {
            exit.kick = None;
        }
        self.reissue();
    }

    /// Orders every chain that is in flight: nobody else will complete it.
    fn reissue(&mut self) {
        let position = self.guest.position();
        let made = |output| Made {
            output,
            needs: LogOffset::ZERO,
            position,
        };
        let replies = self.guest.sending().map(|reply| made(Output::Reply(*reply)));
        self.card.orders.extend(replies);
        let writes = self.guest.keeping().map(|job| made(Output::Write(job)));
        self.drive.orders.extend(writes);
    }

    /// The log is replayed to its end: claims, unless there is nothing to live for.
    pub(super) fn log_ends(&mut self, env: &mut Env) {
        let now = self.desk.now(env);
        let Part::Settling(settling) = &mut self.part else {
            return;
        };
        let Claimant::Backup(survivor) = &mut settling.claimant else {
            return;
        };
        if survivor.why == PeerLost::Left(Parting::PowerOff) {
            return self.end(env, "the guest switched its machine off");
        }
        if self.flaw == Flaw::Known {
            survivor.takeover.handle_replayed();
            if survivor.takeover.poll_deed(now).is_some() {
                env.accuse(
                    "I16",
                    self.desk.host,
                    &"it claims a term, but its guest has diverged",
                );
            }
            return self.end(env, "its copy of the VM had diverged");
        }
        let has_log = survivor.takeover.end() > survivor.following.start;
        if !has_log || self.guest.position() == Position::ZERO {
            return self.end(env, "the primary left before the log began");
        }
        survivor.takeover.handle_replayed();
        survivor.replaying = false;
        env.tell(self.desk.host, || "has replayed its log to the end".into());
        self.ring(env, Actor::Vcpu);
    }
}
