//! What becomes of a modelled host whose session is over: it asks the arbiter, and lives alone or halts. `step` calls it.
//! Whether it may live is judged here.

use lockstep_protocol::ids::{LogOffset, Term};
use lockstep_protocol::outbox::Gate;
use lockstep_protocol::takeover::Deed;

use super::super::pair::{Pair, Role, holder};

/// What becomes of a question to the arbiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Luck {
    Answered,
    Unheard,
    Unanswered,
}

impl Pair {
    /// A host takes the other for lost: its session is over.
    pub(super) fn suspect(&mut self, host: usize) -> bool {
        let now = self.now;
        let host = &mut self.hosts[host];
        host.role = match std::mem::replace(&mut host.role, Role::Dead) {
            Role::Primary(primary) => Role::Claiming(primary.suspect(now)),
            Role::Backup(backup, follower) => {
                Role::TakingOver(Box::new(backup.suspect(now)), follower, false)
            }
            other => {
                host.role = other;
                return false;
            }
        };
        true
    }

    /// One thing is done that a host wants done which has no session any more.
    pub(super) fn settle(&mut self, host: usize, luck: Luck) -> bool {
        let now = self.now;
        let deed = match &mut self.hosts[host].role {
            Role::Claiming(claiming) => claiming.poll_deed(now),
            Role::TakingOver(takeover, ..) => takeover.poll_deed(now),
            _ => None,
        };
        match deed {
            Some(Deed::Claim { expected }) => self.claim(host, expected, luck),
            Some(Deed::Promote { term }) => self.promote(host, term),
            Some(Deed::Halt { .. }) => {
                let host = &mut self.hosts[host];
                host.gate = Gate::SHUT;
                host.held.discard();
                host.role = Role::Halted;
            }
            None => return false,
        }
        true
    }

    fn claim(&mut self, host: usize, expected: Term, luck: Luck) {
        let verdict = match luck {
            Luck::Unheard => None,
            Luck::Answered | Luck::Unanswered => self.register.claim(expected, &holder(host)),
        };
        let verdict = verdict.filter(|_| luck == Luck::Answered);
        self.left.lost_claims -= u8::from(luck != Luck::Answered);
        let now = self.now;
        let outcome = match (&mut self.hosts[host].role, verdict) {
            (Role::Claiming(claiming), Some(verdict)) => claiming.handle_verdict(verdict),
            (Role::TakingOver(takeover, ..), Some(verdict)) => takeover.handle_verdict(verdict),
            (Role::Claiming(claiming), None) => {
                claiming.handle_claim_failed(now);
                Ok(())
            }
            (Role::TakingOver(takeover, ..), None) => {
                takeover.handle_claim_failed(now);
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(fault) = outcome {
            self.accuse(fault.to_string());
        }
    }

    /// A host begins to live alone: it has all that the outside has seen, and nobody else may speak.
    fn promote(&mut self, index: usize, term: Term) {
        let other = &self.hosts[1 - index];
        let dead = matches!(other.role, Role::Dead);
        if !dead && other.gate.lets(LogOffset::ZERO, self.now) {
            self.accuse("A host begins to live alone while the other may still speak (I7)");
        }
        let host = &mut self.hosts[index];
        host.term = term;
        host.gate = Gate::ALONE;
        host.role = Role::Alone;
        let (known, position) = (host.vm.known, host.vm.position);
        if known < self.seen.newest || position < self.seen.furthest {
            self.accuse("The survivor has not executed what the outside has seen (I4)");
        }
        // What entered in its last window is executed now; before that the guest of the lost primary did.
        let vm = &mut self.hosts[index].vm;
        if vm.asked {
            vm.step();
        }
    }
}
