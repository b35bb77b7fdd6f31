//! Who may speak: one host in a term, and no earlier term after a later one (I6, I7, I10).

use std::collections::BTreeMap;

use lockstep_protocol::ids::{Holder, Position, Term};

use crate::sim::agenda::Boot;

/// A start of a host's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Speaker {
    /// Which host.
    pub(crate) host: usize,
    /// Which start of its process.
    pub(crate) boot: Boot,
}

/// The terms so far.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    granted: BTreeMap<Term, Holder>,
    /// Who spoke last, and in which term.
    spoken: Option<(Term, Speaker)>,
    /// How far the guest was when it made the outputs that left in the term that was spoken in last.
    furthest: Position,
}

impl Terms {
    /// The arbiter handed out a term. An error is a sentence.
    pub(crate) fn granted(&mut self, term: Term, holder: &Holder) -> Result<(), String> {
        let first = self.granted.entry(term).or_insert_with(|| holder.clone());
        match first == holder {
            true => Ok(()),
            false => Err(format!(
                "The arbiter gave term {term} to {first} and then to {holder}"
            )),
        }
    }

    /// An output that the guest made at `position` left in `term`.
    pub(crate) fn spoke(&mut self, term: Term, speaker: Speaker, position: Position) -> Result<(), String> {
        match self.spoken {
            // What a host let go before it won its next term may be on its way still.
            Some((newest, other)) if newest > term && other == speaker => return Ok(()),
            Some((newest, _)) if newest > term => {
                return Err(format!(
                    "An output leaves in term {term} although one has left in term {newest}"
                ));
            }
            Some((newest, other)) if newest == term && other != speaker => {
                return Err(format!("Two hosts let outputs leave in term {term}"));
            }
            Some((newest, _)) if newest == term => self.furthest = self.furthest.max(position),
            _ => self.furthest = position,
        }
        self.spoken = Some((term, speaker));
        Ok(())
    }

    /// The furthest position at which an output was made that left in `term`, if one did.
    pub(crate) fn furthest(&self, term: Term) -> Option<Position> {
        self.spoken
            .filter(|(spoken, _)| *spoken == term)
            .map(|_| self.furthest)
    }
}
