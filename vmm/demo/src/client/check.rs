//! The judge of what one connection saw: is its history one that a single never-failing server could have produced,
//! and is everything that was acknowledged still there at the end? It is fed requests as they are sent and replies as
//! they come, keeps only what is still open, and has no socket and no clock.
//!
//! A connection's own keys are written by nobody else and a connection's requests are executed in order, so exactly one
//! reply is right for each. The shared counters have their own rule (`shared.rs`).

use std::collections::{BTreeMap, VecDeque};

use super::command::{Command, SHARED};
use super::model::{Found, Model};
use super::resp::Reply;
use super::shared::{BadNumber, Sent, SharedCounter};

/// The shared counters of one run.
pub(crate) type SharedCounters = [SharedCounter; SHARED as usize];

/// Judges one connection.
#[derive(Clone, Debug)]
pub(crate) struct Checker {
    owner: u16,
    model: Model,
    in_flight: VecDeque<InFlight>,
}

#[derive(Clone, Debug)]
struct InFlight {
    command: Command,
    shared: Option<(usize, Sent)>,
}

/// A reply that no never-failing server would have given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// For people.
    pub(crate) story: String,
}

/// What is missing or wrong after everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Losses {
    /// Acknowledged writes that are not there.
    pub(crate) lost: u64,
    /// Values that nobody wrote.
    pub(crate) wrong: u64,
}

impl Checker {
    pub(crate) fn new(owner: u16) -> Self {
        Self {
            owner,
            model: Model::new(owner),
            in_flight: VecDeque::new(),
        }
    }

    /// Notes a request that is about to be sent.
    pub(crate) fn send(&mut self, counters: &mut SharedCounters, command: Command) {
        let shared = match command {
            Command::IncrShared { counter } => {
                let counter = usize::from(counter);
                Some((counter, counters[counter].send()))
            }
            _ => None,
        };
        self.in_flight.push_back(InFlight { command, shared });
    }

    /// Judges the next reply, which answers the oldest open request.
    pub(crate) fn receive(&mut self, counters: &mut SharedCounters, reply: &Reply) -> Result<(), Wrong> {
        let Some(InFlight { command, shared }) = self.in_flight.pop_front() else {
            return Err(Wrong {
                story: format!("Connection {} got a reply it never asked for", self.owner),
            });
        };
        let right = match (shared, self.model.execute(&command), reply) {
            (Some((counter, sent)), _, Reply::Integer(number)) => {
                match counters[counter].receive(sent, *number) {
                    Ok(()) => return Ok(()),
                    Err(BadNumber::TakenBack) => "a number that nobody had yet".into(),
                    Err(BadNumber::NeverAsked) => "no more than was asked for".into(),
                }
            }
            (Some(_), _, _) => "a number".into(),
            (None, Some(expected), reply) if expected == *reply => return Ok(()),
            (None, expected, _) => expected.as_ref().map_or_else(String::new, short),
        };
        let asked = command
            .words_of(self.owner)
            .iter()
            .take(2)
            .map(|word| lossy(word))
            .collect::<Vec<_>>()
            .join(" ");
        Err(Wrong {
            story: format!("{asked}: right is {right}, came {}", short(reply)),
        })
    }

    /// How many requests nobody answered yet.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Every key that may hold something at the end.
    pub(crate) fn keys(&self) -> Vec<Vec<u8>> {
        self.possible_ends()
            .last()
            .map_or_else(Vec::new, |model| model.keys().map(<[u8]>::to_vec).collect())
    }

    /// Judges what was read back of all of [`Self::keys`] in the end.
    pub(crate) fn finish(&self, found: &BTreeMap<Vec<u8>, Option<Vec<u8>>>) -> Losses {
        self.possible_ends()
            .iter()
            .map(|model| judge(model, found))
            .min()
            .unwrap_or_default()
    }

    /// A broken connection leaves requests open. The server executed a first part of them, nobody knows how many.
    fn possible_ends(&self) -> Vec<Model> {
        let mut ends = vec![self.model.clone()];
        let mut model = self.model.clone();
        for open in &self.in_flight {
            model.execute(&open.command);
            ends.push(model.clone());
        }
        ends
    }
}

fn judge(model: &Model, found: &BTreeMap<Vec<u8>, Option<Vec<u8>>>) -> Losses {
    let mut losses = Losses::default();
    for (key, value) in found {
        match model.judge(key, value.as_deref()) {
            Found::Right => {}
            Found::Lost(writes) => losses.lost += writes,
            Found::Wrong => losses.wrong += 1,
        }
    }
    losses
}

fn short(reply: &Reply) -> String {
    match reply {
        Reply::Simple(text) | Reply::Error(text) => lossy(text),
        Reply::Integer(number) => number.to_string(),
        Reply::Bulk(None) => "nothing".into(),
        Reply::Bulk(Some(text)) => format!("\"{}\" of {} bytes", lossy(text), text.len()),
        Reply::Array(items) => {
            let items: Vec<_> = items.iter().map(short).collect();
            format!("[{}]", items.join(", "))
        }
    }
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(SHOWN_BYTES)]).into_owned()
}

/// How much of a value a message shows: enough for its owner and number.
const SHOWN_BYTES: usize = 24;

#[cfg(test)]
mod tests;
