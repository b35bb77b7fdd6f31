//! The vCPU of a backup: what the primary executed is executed here, as `vmm/src/ft/replay.rs` and `shadow.rs` do it.

use lockstep_protocol::record::{Input, Record};
use lockstep_protocol::replay::Admitted;

use super::driver::Lost;
use super::settle::{Claimant, Settling, Survivor};
use super::{Flaw, Following, Pair, Part, Process};
use crate::sim::agenda::Actor;
use crate::sim::env::Env;
use crate::sim::guest::Exit;
use crate::sim::wires::ConnId;

/// So many records are replayed at once at most.
const BURST: usize = 16;

/// How a piece of replay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replay {
    /// There may be more.
    More,
    /// Nothing more is here.
    Dry,
    /// The guest is over.
    Ends,
    /// The machine is not the primary's any more.
    Diverged,
}

impl Process {
    /// Follows the log as far as it is here. The loss of the primary is seen first: what is left of its log is
    /// replayed while the machine of the takeover is there to be asked.
    pub(super) fn follow(&mut self, env: &mut Env) {
        if let Some(lost) = self.lost_primary() {
            return self.suspect_primary(env, lost);
        }
        let Part::Following(following) = &mut self.part else {
            return;
        };
        let mut following = std::mem::take(following);
        let outcome = self.replay(env, &mut following);
        self.part = Part::Following(following);
        if let Pair::Backup(end) = &mut self.pair
            && end.resumes()
        {
            self.ring(env, Actor::Driver);
        }
        match outcome {
            Replay::More => self.wake_vcpu_at(env, self.busy_until),
            Replay::Ends => self.end(env, "the guest of the primary is over, and so is this one"),
            Replay::Diverged | Replay::Dry => {}
        }
    }

    /// Replays what a lost primary left.
    pub(super) fn replay_rest(&mut self, env: &mut Env) {
        let Part::Settling(settling) = &mut self.part else {
            return;
        };
        let Claimant::Backup(survivor) = &mut settling.claimant else {
            return;
        };
        let mut following = std::mem::take(&mut survivor.following);
        let outcome = self.replay(env, &mut following);
        if let Part::Settling(settling) = &mut self.part
            && let Claimant::Backup(survivor) = &mut settling.claimant
        {
            survivor.following = following;
        }
        match outcome {
            Replay::More => self.wake_vcpu_at(env, self.busy_until),
            Replay::Ends => self.end(env, "the guest of the lost primary was over, and so is this one"),
            Replay::Diverged => {}
            Replay::Dry => self.log_ends(env),
        }
    }

    fn replay(&mut self, env: &mut Env, following: &mut Following) -> Replay {
        for _ in 0..BURST {
            let exit = match self.window.take() {
                Some(exit) => exit,
                None if self.powered => self.guest.step(),
                // Position 0: the window before the first instruction.
                None => {
                    self.powered = true;
                    Exit::default()
                }
            };
            let Some(record) = following.follower.poll_kept().or_else(|| self.next_record()) else {
                self.window = Some(exit);
                return Replay::Dry;
            };
            let outcome = self.admit(env, following, record, exit);
            if outcome != Replay::More {
                return outcome;
            }
            self.busy_until = self.busy_until.max(env.now).later(self.replay_cost(env));
        }
        Replay::More
    }

    fn admit(&mut self, env: &mut Env, following: &mut Following, record: Record, exit: Exit) -> Replay {
        let called = exit.kick.is_some() || exit.end;
        let at = self.guest.position();
        let (mut exit, mut ends) = (exit, false);
        match following.follower.handle_record(record, at, called) {
            Ok(Admitted::Later) if exit.end => {
                let outcome = self.diverge(env, following, &"its guest ended");
                self.window = Some(Exit::default());
                return outcome;
            }
            // The primary has left this window for certain: the guest runs on.
            Ok(Admitted::Later) => {
                following.marked = false;
                return Replay::More;
            }
            Ok(Admitted::Kept | Admitted::Dropped) => {}
            Ok(Admitted::Delta { pages, end, heals }) => {
                if let Err(sentence) = self.guest.become_like(env.runs.find(&pages, &end), heals) {
                    env.accuse("I15", self.desk.host, &sentence);
                    return Replay::Diverged;
                }
                env.oracle.tally.deltas += 1;
                if heals {
                    self.healed(env);
                } else if matches!(self.flaw, Flaw::Hidden(_)) {
                    // All of the guest is the primary's now, what was wrong with it included.
                    self.flaw = Flaw::None;
                }
                exit = Exit::default();
                following.marked = false;
            }
            Ok(Admitted::Enters(record)) => {
                let outcome = self.let_in(env, following, &record);
                if outcome != Replay::More {
                    return outcome;
                }
                following.marked |= matches!(record.input, Input::Mark);
                exit.idle = None;
                ends = exit.end && following.marked && record.closes;
            }
            Err(misplaced) => {
                let outcome = self.diverge(env, following, &misplaced);
                if outcome != Replay::More {
                    return outcome;
                }
            }
        }
        following.applied = following.applied.next();
        if let Pair::Backup(end) = &mut self.pair {
            end.executed(following.applied, at);
        }
        if ends {
            return Replay::Ends;
        }
        self.window = Some(exit);
        if self.flaw == Flaw::None && env.dice.chance(env.plan.flips) {
            env.tell(self.desk.host, || "has a bit flipped in its guest".into());
            self.guest.wander(env.dice.any());
            // Where the guest is now: a delta that heals may just have taken it further.
            self.flaw = Flaw::Hidden(self.guest.position());
        }
        Replay::More
    }

    /// A record of the open window enters, or shows that the guest is not the primary's any more.
    fn let_in(&mut self, env: &mut Env, following: &mut Following, record: &Record) -> Replay {
        if self.flaw == Flaw::Known {
            env.accuse(
                "I16",
                self.desk.host,
                &"a record enters a guest that has diverged",
            );
        }
        match &record.input {
            Input::Digest { bytes } if bytes[..] != self.guest.fingerprint().to_le_bytes() => {
                self.diverge(env, following, &"its digest is another one")
            }
            input => match self.guest.enter(&input.borrowed()) {
                Ok(()) => Replay::More,
                Err(misfit) => self.diverge(env, following, &misfit),
            },
        }
    }

    /// The guest is not the primary's any more. Only a bit that flipped may have made it so.
    fn diverge(&mut self, env: &mut Env, following: &mut Following, why: &dyn std::fmt::Display) -> Replay {
        if !matches!(self.flaw, Flaw::Hidden(_)) {
            env.accuse("I3", self.desk.host, &why);
            return Replay::Diverged;
        }
        env.tell(self.desk.host, || format!("has diverged: {why}"));
        following.follower.stray();
        self.flaw = Flaw::Known;
        let at = self.guest.position();
        match (&mut self.pair, &mut self.part) {
            (Pair::Backup(end), _) => end.diverge(env, at, &[self.guest.fingerprint()]),
            (_, Part::Settling(settling)) => {
                if let Claimant::Backup(survivor) = &mut settling.claimant {
                    survivor.takeover.handle_diverged();
                }
            }
            _ => {}
        }
        self.ring(env, Actor::Driver);
        Replay::More
    }

    fn healed(&mut self, env: &mut Env) {
        self.flaw = Flaw::None;
        env.oracle.tally.healed += 1;
        env.tell(self.desk.host, || "is healed".into());
        match (&mut self.pair, &mut self.part) {
            (Pair::Backup(end), _) => end.heal(env),
            (_, Part::Settling(settling)) => {
                if let Claimant::Backup(survivor) = &mut settling.claimant {
                    survivor.takeover.handle_healed();
                }
            }
            _ => {}
        }
        self.ring(env, Actor::Driver);
    }

    fn next_record(&mut self) -> Option<Record> {
        if let Part::Settling(settling) = &mut self.part
            && let Claimant::Backup(survivor) = &mut settling.claimant
        {
            return survivor.takeover.poll_deliver();
        }
        match &mut self.pair {
            Pair::Backup(end) => end.deliver(),
            _ => None,
        }
    }

    fn replay_cost(&mut self, env: &mut Env) -> u64 {
        let slowly = match env.now < env.slow_replay_until {
            true => 20,
            false => 1,
        };
        env.dice.between(env.plan.replay) * slowly
    }

    fn suspect_primary(&mut self, env: &mut Env, lost: (ConnId, Lost)) {
        let Part::Following(following) = &mut self.part else {
            return;
        };
        let (session, Lost { takeover, why, heard }) = lost;
        env.tell(self.desk.host, || format!("takes over ({why})"));
        let survivor = Survivor {
            session,
            takeover,
            following: std::mem::take(following),
            why,
            replaying: true,
            heard,
        };
        let settling = Settling {
            claimant: Claimant::Backup(Box::new(survivor)),
        };
        self.becomes(env, Part::Settling(Box::new(settling)));
        self.ring(env, Actor::Vcpu);
    }

    /// What is left of the session, once it is over.
    fn lost_primary(&mut self) -> Option<(ConnId, Lost)> {
        let Pair::Backup(end) = &mut self.pair else {
            return None;
        };
        let lost = (end.conn, end.take_lost()?);
        self.pair = Pair::Nobody;
        Some(lost)
    }
}
