//! What a VMM asks the service and what it answers: one question and one answer on each stream, as JSON.
//!
//! The client and the server use it. A message is short, and one that is not exactly as described here is
//! refused; the protocol's version is in the name that TLS negotiates.

use std::error::Error;

use lockstep_protocol::ids::{Holder, Term};
use lockstep_quic::failure::whole_sentence;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::register::VmName;

/// No question and no answer is longer.
pub const MAX_MESSAGE: usize = 2048;
/// A sentence about a failure is cut after so many bytes; with every byte escaped it still fits a message.
pub const MAX_SENTENCE: usize = 320;

/// From the VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase", deny_unknown_fields)]
pub enum Question {
    /// Which term is the newest, and whose?
    Read {
        /// Of which VM.
        vm: VmName,
    },
    /// May I have the term after this one?
    Claim {
        /// Of which VM.
        vm: VmName,
        /// The newest term that I know.
        expected: Term,
        /// Who I am.
        me: Holder,
    },
}

/// From the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase", deny_unknown_fields)]
pub enum Answer {
    /// To a read: there was no term yet.
    Nobody {},
    /// To a read: this is the newest.
    Holds {
        /// The term.
        term: Term,
        /// Whose it is.
        holder: Holder,
    },
    /// To a claim: the term is yours, and that would survive a power cut.
    Granted {
        /// The term.
        term: Term,
    },
    /// To a claim: somebody else has a newer term than the one that you expected.
    Refused {
        /// The term.
        term: Term,
        /// Whose it is.
        holder: Holder,
    },
    /// No answer can be given.
    Failed {
        /// Whether asking again can help.
        may_pass: bool,
        /// Why, for people.
        sentence: String,
    },
}

impl Answer {
    /// A failure with its sentence, cut to size.
    pub fn failed(may_pass: bool, sentence: &str) -> Self {
        let cut = sentence.floor_char_boundary(MAX_SENTENCE);
        Self::Failed {
            may_pass,
            sentence: sentence[..cut].to_owned(),
        }
    }

    /// A failure with the error's sentence and those of its causes, which nobody else would tell the client.
    pub fn failed_by(may_pass: bool, error: &dyn Error) -> Self {
        Self::failed(may_pass, &whole_sentence(error))
    }
}

/// A message that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("Not a message of the arbiter's protocol")]
pub struct BadMessage(#[from] serde_json::Error);

/// The bytes of a question or an answer.
pub fn encode<M: Serialize>(message: &M) -> Vec<u8> {
    serde_json::to_vec(message).expect("messages have no maps and no numbers that JSON lacks")
}

/// The question or answer that these bytes are.
pub fn decode<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, BadMessage> {
    Ok(serde_json::from_slice(bytes)?)
}

#[cfg(test)]
mod tests {
    use std::io;

    use lockstep_protocol::ids::{Incarnation, NodeName};
    use proptest::prelude::*;

    use super::*;
    use crate::store::StoreError;

    fn holder() -> Holder {
        Holder {
            node: NodeName::new(&"n".repeat(32)).unwrap(),
            incarnation: Incarnation::new(u128::MAX),
        }
    }

    fn full_disk(dir: &str) -> StoreError {
        let source = io::Error::from_raw_os_error(28);
        StoreError::Full {
            dir: dir.into(),
            source,
        }
    }

    #[test]
    fn the_longest_messages_fit_and_read_back() {
        let vm = VmName::new(&"v".repeat(32)).unwrap();
        let claim = Question::Claim {
            vm,
            expected: Term::MAX,
            me: holder(),
        };
        let failed = Answer::failed(true, &"\u{1}".repeat(1000));

        assert!(encode(&claim).len() <= MAX_MESSAGE);
        assert!(encode(&failed).len() <= MAX_MESSAGE);
        assert_eq!(decode::<Question>(&encode(&claim)).unwrap(), claim);
        assert_eq!(decode::<Answer>(&encode(&failed)).unwrap(), failed);
    }

    #[test]
    fn a_failure_by_an_error_tells_what_the_system_said() {
        let told = Answer::failed_by(true, &full_disk("/terms"));

        let sentence =
            "The disk of /terms is full; nothing was changed: No space left on device (os error 28)";
        assert_eq!(told, Answer::failed(true, sentence));
    }

    #[test]
    fn a_failure_by_an_error_with_a_long_sentence_fits() {
        let told = Answer::failed_by(true, &full_disk(&"\u{1}".repeat(1000)));

        assert!(encode(&told).len() <= MAX_MESSAGE);
    }

    #[test]
    fn a_vm_name_that_leaves_the_directory_is_no_question() {
        assert!(decode::<Question>(br#"{"ask":"read","vm":"../etc"}"#).is_err());
    }

    #[test]
    fn a_question_with_something_more_in_it_is_refused() {
        assert!(decode::<Question>(br#"{"ask":"read","vm":"shop"}"#).is_ok());
        assert!(decode::<Question>(br#"{"ask":"read","vm":"shop","and":1}"#).is_err());
        assert!(decode::<Question>(br#"{"ask":"read","vm":"shop"} {}"#).is_err());
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..MAX_MESSAGE)) {
            prop_assert!(decode::<Question>(&noise).is_err());
        }
    }
}
