//! The edge of a takeover: asks the arbiter what the sans-IO machines want claimed, and waits where they say.
//!
//! The run loop calls [`settle`] when the peer is lost, on a primary and a backup alike. Until it returns, nothing
//! leaves this host: a primary's lease is over or runs out, a backup was never live. It changes no machine.

use lockstep_arbiter::client::{ArbiterClient, ClaimError};
use lockstep_arbiter::register::VmName;
use lockstep_protocol::ids::{Holder, Term};
use lockstep_protocol::takeover::{Claiming, Deed, Takeover, Verdict, VerdictFault};
use lockstep_protocol::time::Instant;
use lockstep_quic::failure::whole_sentence;
use lockstep_staging::gate::boottime;
use std::thread;
use std::time::Duration;

/// How long to sleep at most between two looks at the machines; only bounds how late a stop is seen.
const NAP_MAX: Duration = Duration::from_millis(50);

/// A claim in progress: the part that a primary's and a backup's machine have in common.
pub trait Claimant {
    /// What is to be done now.
    fn poll_deed(&mut self, now: Instant) -> Option<Deed>;
    /// The arbiter spoke.
    ///
    /// # Errors
    /// When it spoke nonsense.
    fn handle_verdict(&mut self, verdict: Verdict) -> Result<(), VerdictFault>;
    /// The arbiter could not be asked.
    fn handle_claim_failed(&mut self, now: Instant);
    /// When to poll again at the latest.
    fn next_timeout(&self) -> Instant;
}

/// How a lost peer ends for this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It lives, alone, in this term.
    Lives(Term),
    /// Another host lives in that term.
    Halts {
        /// Who.
        by: Holder,
        /// In which term.
        term: Term,
    },
    /// Somebody asked this process to stop while it waited.
    Stopped,
}

/// This host's place at the arbiter.
pub struct Seat {
    /// The connection to it.
    pub arbiter: ArbiterClient,
    /// The register.
    pub vm: VmName,
    /// Who claims.
    pub me: Holder,
}

impl Seat {
    /// Claims the term after `expected`, once.
    ///
    /// # Errors
    /// When the arbiter could not be asked or cannot serve.
    pub fn claim(&mut self, expected: Term) -> Result<Verdict, ClaimError> {
        self.arbiter.claim(&self.vm, expected, &self.me)
    }
}

/// Claims until there is a verdict, and waits until it may be carried out. `on_deed` is told each step.
///
/// # Errors
/// When the arbiter granted what was not claimed.
pub fn settle(
    claimant: &mut impl Claimant,
    seat: &mut Seat,
    mut on_deed: impl FnMut(&Deed),
    is_stopped: impl Fn() -> bool,
) -> Result<Settled, VerdictFault> {
    loop {
        if is_stopped() {
            return Ok(Settled::Stopped);
        }
        let Some(deed) = claimant.poll_deed(boottime()) else {
            let nap = claimant.next_timeout().saturating_since(boottime());
            thread::sleep(nap.min(NAP_MAX));
            continue;
        };
        on_deed(&deed);
        match deed {
            Deed::Claim { expected } => match seat.claim(expected) {
                Ok(verdict) => claimant.handle_verdict(verdict)?,
                // Even an error that only a person can heal is waited for: ending here would throw the replica away.
                Err(error) => {
                    let why = whole_sentence(&error);
                    tracing::warn!(%why, "The arbiter gives no verdict; nothing leaves this host until it does");
                    claimant.handle_claim_failed(boottime());
                }
            },
            Deed::Promote { term } => return Ok(Settled::Lives(term)),
            Deed::Halt { by, term } => return Ok(Settled::Halts { by, term }),
        }
    }
}

macro_rules! claimant {
    ($machine:ty) => {
        impl Claimant for $machine {
            fn poll_deed(&mut self, now: Instant) -> Option<Deed> {
                <$machine>::poll_deed(self, now)
            }
            fn handle_verdict(&mut self, verdict: Verdict) -> Result<(), VerdictFault> {
                <$machine>::handle_verdict(self, verdict)
            }
            fn handle_claim_failed(&mut self, now: Instant) {
                <$machine>::handle_claim_failed(self, now);
            }
            fn next_timeout(&self) -> Instant {
                <$machine>::next_timeout(self)
            }
        }
    };
}

claimant!(Takeover);
claimant!(Claiming);
