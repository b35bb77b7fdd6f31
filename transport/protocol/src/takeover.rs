//! After a lost peer: claim the next term at the arbiter, then live or halt. A backup first replays its log to
//! the end and waits until the lease of its primary is over. It never asks the arbiter itself: the edge does.

use crate::backup::Backlog;
use crate::ids::{Holder, LogOffset, NodeName, Term};
use crate::limits::CLAIM_RETRY;
use crate::record::Record;
use crate::time::Instant;

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Deed {
    /// Ask the arbiter for the term after `expected`, and bring back its verdict or its silence.
    Claim {
        /// The term that is over.
        expected: Term,
    },
    /// Go on alone, as the primary of `term`.
    Promote {
        /// The term that was won.
        term: Term,
    },
    /// Halt before anything more leaves this host. Nothing comes after this.
    Halt {
        /// Who won instead.
        by: Holder,
        /// The term that was lost.
        term: Term,
    },
}

/// What the arbiter said.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The term is ours.
    Granted {
        /// The term.
        term: Term,
    },
    /// Somebody else has it.
    Refused {
        /// The newest term.
        term: Term,
        /// Who has it.
        holder: Holder,
    },
}

/// What an honest arbiter cannot grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The arbiter granted term {granted} to a claim for term {claimed}")]
pub struct VerdictFault {
    /// What it granted.
    pub granted: Term,
    /// What was claimed.
    pub claimed: Term,
}

/// A claim under way: asked again until there is a verdict, and a verdict is final (I10).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Claim {
    expected: Term,
    state: ClaimState,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum ClaimState {
    /// Not asked, or to be asked again.
    Due(Instant),
    /// Asked; no answer yet.
    Asked,
    Won(Term),
    Lost {
        by: Holder,
        term: Term,
    },
    /// The verdict has been carried out.
    Done,
}

impl Claim {
    fn new(expected: Term, now: Instant) -> Self {
        Self {
            expected,
            state: ClaimState::Due(now),
        }
    }

    /// `may_live` is the moment from which a won term may be lived in.
    fn poll_deed(&mut self, now: Instant, may_live: Instant) -> Option<Deed> {
        let (deed, next) = match &self.state {
            ClaimState::Due(at) if now >= *at => (
                Deed::Claim {
                    expected: self.expected,
                },
                ClaimState::Asked,
            ),
            ClaimState::Won(term) if now >= may_live => (Deed::Promote { term: *term }, ClaimState::Done),
            ClaimState::Lost { by, term } => (
                Deed::Halt {
                    by: by.clone(),
                    term: *term,
                },
                ClaimState::Done,
            ),
            ClaimState::Due(_) | ClaimState::Won(_) | ClaimState::Asked | ClaimState::Done => return None,
        };
        self.state = next;
        Some(deed)
    }

    fn handle_verdict(&mut self, verdict: Verdict) -> Result<(), VerdictFault> {
        // Ignore: there was a verdict already, and it is final. A late answer to an earlier attempt counts:
        // the arbiter gives the same claimant the same answer.
        if !matches!(self.state, ClaimState::Due(_) | ClaimState::Asked) {
            return Ok(());
        }
        self.state = match verdict {
            // Check: a claim for one term wins that term or none.
            Verdict::Granted { term } if term != self.expected.next() => {
                return Err(VerdictFault {
                    granted: term,
                    claimed: self.expected.next(),
                });
            }
            Verdict::Granted { term } => ClaimState::Won(term),
            Verdict::Refused { term, holder } => ClaimState::Lost { by: holder, term },
        };
        Ok(())
    }

    fn handle_failed(&mut self, now: Instant) {
        if matches!(self.state, ClaimState::Asked) {
            self.state = ClaimState::Due(now + CLAIM_RETRY);
        }
    }

    fn next_timeout(&self, may_live: Instant) -> Instant {
        match self.state {
            ClaimState::Due(at) => at,
            ClaimState::Won(_) => may_live,
            ClaimState::Lost { .. } => Instant::ZERO,
            ClaimState::Asked | ClaimState::Done => Instant::FOREVER,
        }
    }
}

/// A backup that lost its primary.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Takeover {
    claim: Claim,
    lease_over: Instant,
    log: Backlog,
    replayed: bool,
    /// Our machine is not the one that the outside has seen.
    diverged: bool,
}

impl Takeover {
    pub(crate) fn new(term: Term, lease_over: Instant, log: Backlog, diverged: bool, now: Instant) -> Self {
        Self {
            claim: Claim::new(term, now),
            lease_over,
            log,
            replayed: false,
            diverged,
        }
    }

    /// The next record that was received and not yet handed to the VM.
    pub fn poll_deliver(&mut self) -> Option<Record> {
        self.log.pop()
    }

    /// Our VM has applied every record and stands in the window of the last one, or after it: at or past every
    /// position at which an output was made that the old primary may have released (I4).
    pub fn handle_replayed(&mut self) {
        assert!(
            self.log.is_delivered(),
            "a log is replayed after all of it was delivered"
        );
        self.replayed = true;
    }

    /// Our machine turned out not to be the primary's while the rest of the log was replayed. There is nobody to heal it.
    pub fn handle_diverged(&mut self) {
        self.diverged = true;
    }

    /// The delta that heals it was in the rest of the log, whole.
    pub fn handle_healed(&mut self) {
        self.diverged = false;
    }

    /// What is to be done now, if anything. Nothing at all before the log is replayed: who cannot finish the
    /// replay must not win the term.
    pub fn poll_deed(&mut self, now: Instant) -> Option<Deed> {
        if !self.replayed {
            return None;
        }
        // I16: nobody must live with a machine that is another one than the outside knows.
        if self.diverged {
            return None;
        }
        self.claim.poll_deed(now, self.lease_over)
    }

    /// The arbiter answered.
    pub fn handle_verdict(&mut self, verdict: Verdict) -> Result<(), VerdictFault> {
        self.claim.handle_verdict(verdict)
    }

    /// The arbiter could not be asked; it will be asked again.
    pub fn handle_claim_failed(&mut self, now: Instant) {
        self.claim.handle_failed(now);
    }

    /// When `poll_deed` has something to do.
    pub fn next_timeout(&self) -> Instant {
        if self.replayed && !self.diverged {
            self.claim.next_timeout(self.lease_over)
        } else {
            Instant::FOREVER
        }
    }

    /// The term that is over.
    pub fn term(&self) -> Term {
        self.claim.expected
    }

    /// The end of the log, as far as it came here.
    pub fn end(&self) -> LogOffset {
        self.log.received()
    }

    /// How many bytes of log were received.
    pub fn log_bytes(&self) -> u64 {
        self.log.log_bytes()
    }

    /// From when on the old primary writes no more.
    pub fn lease_over(&self) -> Instant {
        self.lease_over
    }
}

/// A primary that lost its backup. Its gate stays as it was: what is acked may leave until the lease is over.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claiming {
    claim: Claim,
}

impl Claiming {
    /// The primary of `term` that lost its backup at `now`. Made by [`Primary::suspect`](crate::Primary::suspect) alone.
    pub(crate) fn new(term: Term, now: Instant) -> Self {
        Self {
            claim: Claim::new(term, now),
        }
    }

    /// What is to be done now, if anything.
    pub fn poll_deed(&mut self, now: Instant) -> Option<Deed> {
        // No lease to wait for: the lease that was given is our own.
        self.claim.poll_deed(now, Instant::ZERO)
    }

    /// The arbiter answered.
    pub fn handle_verdict(&mut self, verdict: Verdict) -> Result<(), VerdictFault> {
        self.claim.handle_verdict(verdict)
    }

    /// The arbiter could not be asked; it will be asked again.
    pub fn handle_claim_failed(&mut self, now: Instant) {
        self.claim.handle_failed(now);
    }

    /// When `poll_deed` has something to do.
    pub fn next_timeout(&self) -> Instant {
        self.claim.next_timeout(Instant::ZERO)
    }

    /// The term that is over.
    pub fn term(&self) -> Term {
        self.claim.expected
    }
}

/// May these hosts power the VM on, after the `last` term that was granted? Its holder may be running the VM, so it has to be
/// one of them, which are known not to (I18).
pub fn may_begin(last: Option<&Holder>, hosts: &[&NodeName]) -> bool {
    last.is_none_or(|holder| hosts.contains(&&holder.node))
}

#[cfg(test)]
mod tests;
