//! The register of one VM: its newest term and who holds it, and the one rule by which a term is handed out.
//!
//! Pure: the stores ask it, tests use it as their oracle. It never touches a disk or a wire.

use std::fmt;
use std::str::FromStr;

use lockstep_protocol::ids::{Holder, Term};
use lockstep_protocol::limits::MAX_NODE_NAME;
use lockstep_protocol::takeover::Verdict;
use serde::{Deserialize, Serialize};

/// One term and who holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// The term; the first one of a VM is 1.
    pub term: Term,
    /// Whose it is, for ever.
    pub holder: Holder,
}

impl fmt::Display for Tenure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "term {} of {}", self.term, self.holder)
    }
}

/// The newest term of one VM, or none before its first power-on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Register {
    newest: Option<Tenure>,
}

/// What the rule says to a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// The term is free and may be handed to the claimant.
    Free(Term),
    /// The claimant has it already: an answer was lost, and it asks again.
    Held(Term),
    /// Somebody else came first, or the claimant was superseded since.
    Taken(Tenure),
    /// The claimant knows a term that was never handed out here: this is another register, or an old copy.
    NeverHandedOut {
        /// The newest term here.
        newest: Term,
    },
}

impl Register {
    /// A register as a store found it.
    pub fn new(newest: Option<Tenure>) -> Self {
        Self { newest }
    }

    /// The newest term that was handed out.
    pub fn newest(&self) -> Option<&Tenure> {
        self.newest.as_ref()
    }

    /// The newest term's number, or zero before the first.
    pub fn newest_term(&self) -> Term {
        self.newest.as_ref().map_or(Term::ZERO, |tenure| tenure.term)
    }

    /// What is to be said to `me`, who claims the term after `expected`. Changes nothing.
    pub fn judge(&self, expected: Term, me: &Holder) -> Ruling {
        let (newest, next) = (self.newest_term(), expected.next());
        match &self.newest {
            // Nothing comes after the last term.
            _ if next == expected => Ruling::NeverHandedOut { newest },
            _ if newest == expected => Ruling::Free(next),
            Some(tenure) if tenure.term == next && tenure.holder == *me => Ruling::Held(next),
            Some(tenure) if tenure.term > expected => Ruling::Taken(tenure.clone()),
            _ => Ruling::NeverHandedOut { newest },
        }
    }

    /// Hands out the term after `expected`, or says who came first. `None` for a term that was never handed out.
    pub fn claim(&mut self, expected: Term, me: &Holder) -> Option<Verdict> {
        match self.judge(expected, me) {
            Ruling::Free(term) => {
                self.newest = Some(Tenure {
                    term,
                    holder: me.clone(),
                });
                Some(Verdict::Granted { term })
            }
            Ruling::Held(term) => Some(Verdict::Granted { term }),
            Ruling::Taken(Tenure { term, holder }) => Some(Verdict::Refused { term, holder }),
            Ruling::NeverHandedOut { .. } => None,
        }
    }
}

/// What a VM is called: 1 to 32 of `a-z`, `0-9` and `-`. Its register lives in a directory of this name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

/// A word is not the name of a VM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("A VM's name has 1 to {MAX_NODE_NAME} of a-z, 0-9 and -, and this is {0:?}")]
pub struct BadVmName(String);

impl VmName {
    /// Checks a word from a configuration, a command line or a wire.
    pub fn new(name: &str) -> Result<Self, BadVmName> {
        let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        if (1..=MAX_NODE_NAME).contains(&name.len()) && name.bytes().all(plain) {
            return Ok(Self(name.to_owned()));
        }
        Err(BadVmName(name.chars().take(2 * MAX_NODE_NAME).collect()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for VmName {
    type Err = BadVmName;

    fn from_str(text: &str) -> Result<Self, BadVmName> {
        Self::new(text)
    }
}

impl TryFrom<String> for VmName {
    type Error = BadVmName;

    fn try_from(text: String) -> Result<Self, BadVmName> {
        Self::new(&text)
    }
}

impl From<VmName> for String {
    fn from(name: VmName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use lockstep_protocol::ids::{Incarnation, NodeName};

    use super::*;

    fn holder(node: &str, incarnation: u128) -> Holder {
        Holder {
            node: NodeName::new(node).unwrap(),
            incarnation: Incarnation::new(incarnation),
        }
    }

    fn granted(term: u64) -> Option<Verdict> {
        Some(Verdict::Granted {
            term: Term::new(term),
        })
    }

    fn refused(term: u64, holder: Holder) -> Option<Verdict> {
        Some(Verdict::Refused {
            term: Term::new(term),
            holder,
        })
    }

    #[test]
    fn the_first_claim_wins_the_first_term_and_the_second_learns_who_did() {
        let mut register = Register::default();

        assert_eq!(register.claim(Term::ZERO, &holder("a", 1)), granted(1));
        assert_eq!(
            register.claim(Term::ZERO, &holder("b", 2)),
            refused(1, holder("a", 1))
        );
    }

    #[test]
    fn a_claim_whose_answer_was_lost_is_granted_again() {
        let mut register = Register::default();
        register.claim(Term::ZERO, &holder("a", 1));

        assert_eq!(register.claim(Term::ZERO, &holder("a", 1)), granted(1));
        assert_eq!(register.newest_term(), Term::new(1));
    }

    #[test]
    fn another_start_of_the_same_host_is_not_the_holder() {
        let mut register = Register::default();
        register.claim(Term::ZERO, &holder("a", 1));

        assert_eq!(
            register.claim(Term::ZERO, &holder("a", 2)),
            refused(1, holder("a", 1))
        );
    }

    #[test]
    fn a_holder_that_was_superseded_is_told_by_whom() {
        let mut register = Register::default();
        register.claim(Term::ZERO, &holder("a", 1));
        register.claim(Term::new(1), &holder("b", 2));

        assert_eq!(
            register.claim(Term::ZERO, &holder("a", 1)),
            refused(2, holder("b", 2))
        );
    }

    #[test]
    fn a_holder_that_goes_on_alone_wins_the_next_term() {
        let mut register = Register::default();
        register.claim(Term::ZERO, &holder("a", 1));

        assert_eq!(register.claim(Term::new(1), &holder("a", 1)), granted(2));
    }

    #[test]
    fn a_term_that_was_never_handed_out_is_neither_granted_nor_refused() {
        let mut register = Register::default();

        assert_eq!(register.claim(Term::new(4), &holder("a", 1)), None);
        assert_eq!(register.claim(Term::MAX, &holder("a", 1)), None);
        assert_eq!(register.newest(), None);
    }

    #[test]
    fn a_name_that_leaves_the_directory_is_no_name() {
        assert!(VmName::new("..").is_err());
        assert!(VmName::new("a/b").is_err());
        assert!(VmName::new("").is_err());
        assert!(VmName::new("shop-1").is_ok());
    }
}
