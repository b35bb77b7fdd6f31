//! What one connection's own keys must hold. Nobody else writes them, so every reply is known exactly before it comes:
//! that makes the check of each history that one never-failing server could have produced complete for these keys.
//! Pure: no sockets, no clock.

use std::collections::{BTreeMap, VecDeque};

use super::command::{Command, counter_name, key_name};
use super::resp::Reply;

/// The state that a never-failing server would have for one connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    owner: u16,
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Earlier states of each key, latest last: to tell a lost write from a wrong value.
    earlier: BTreeMap<Vec<u8>, VecDeque<Option<Vec<u8>>>>,
    /// How many writes each key ever had.
    writes: BTreeMap<Vec<u8>, u64>,
}

/// What a key's value says when it is read back at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// What must be there.
    Right,
    /// An earlier state: this many acknowledged writes are missing.
    Lost(u64),
    /// A value that this key never had.
    Wrong,
}

impl Model {
    pub(crate) fn new(owner: u16) -> Self {
        Self {
            owner,
            ..Self::default()
        }
    }

    /// Executes `command` and returns the only right reply. Shared counters are not in this model: nothing for them.
    pub(crate) fn execute(&mut self, command: &Command) -> Option<Reply> {
        let ok = Reply::Simple(b"OK".to_vec());
        Some(match command {
            Command::Ping => Reply::Simple(b"PONG".to_vec()),
            Command::IncrShared { .. } => return None,
            Command::Get { key } => self.get(*key),
            Command::MGet { keys } => Reply::Array(keys.iter().map(|key| self.get(*key)).collect()),
            Command::Set { key, value } => {
                self.write(key_name(self.owner, *key), Some(value.bytes()));
                ok
            }
            Command::MSet { pairs } => {
                for (key, value) in pairs {
                    self.write(key_name(self.owner, *key), Some(value.bytes()));
                }
                ok
            }
            Command::Append { key, value } => {
                let name = key_name(self.owner, *key);
                let mut text = self.values.get(&name).cloned().unwrap_or_default();
                text.extend(value.bytes());
                let size = text.len();
                self.write(name, Some(text));
                Reply::Integer(i64::try_from(size).expect("a value is far below 2^63 bytes"))
            }
            Command::Del { key } => {
                let name = key_name(self.owner, *key);
                let present = self.values.contains_key(&name);
                if present {
                    self.write(name, None);
                }
                Reply::Integer(present.into())
            }
            Command::Incr { counter } => self.incr(*counter),
        })
    }

    /// Every key that was ever written.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.writes.keys().map(Vec::as_slice)
    }

    /// What must be there now.
    pub(crate) fn value(&self, key: &[u8]) -> Option<&[u8]> {
        self.values.get(key).map(Vec::as_slice)
    }

    /// Judges what was read back.
    pub(crate) fn judge(&self, key: &[u8], found: Option<&[u8]>) -> Found {
        if self.value(key) == found {
            return Found::Right;
        }
        let earlier = self.earlier.get(key);
        let age = earlier.and_then(|states| states.iter().rev().position(|state| state.as_deref() == found));
        match (age, found) {
            (Some(age), _) => Found::Lost(age as u64 + 1),
            // Gone altogether, or older than what is remembered: all of its writes are missing.
            (None, None) => Found::Lost(self.writes.get(key).copied().unwrap_or(1)),
            (None, Some(_)) => Found::Wrong,
        }
    }

    fn get(&self, key: u16) -> Reply {
        Reply::Bulk(self.value(&key_name(self.owner, key)).map(<[u8]>::to_vec))
    }

    fn incr(&mut self, counter: u16) -> Reply {
        let name = counter_name(self.owner, counter);
        let before: i64 = self.values.get(&name).map_or(0, |text| {
            String::from_utf8_lossy(text)
                .parse()
                .expect("only this function writes counters")
        });
        self.write(name, Some((before + 1).to_string().into_bytes()));
        Reply::Integer(before + 1)
    }

    fn write(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        let before = match value {
            Some(value) => self.values.insert(key.clone(), value),
            None => self.values.remove(&key),
        };
        *self.writes.entry(key.clone()).or_default() += 1;
        let states = self.earlier.entry(key).or_default();
        if states.len() == EARLIER_MAX {
            states.pop_front();
        }
        states.push_back(before);
    }
}

/// How many earlier states of a key are remembered.
const EARLIER_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::super::command::Value;
    use super::*;

    fn set(number: u32) -> Command {
        Command::Set {
            key: 1,
            value: Value {
                owner: 5,
                number,
                size: 20,
            },
        }
    }

    #[test]
    fn replies_are_those_of_a_server() {
        let mut model = Model::new(5);
        assert_eq!(model.execute(&Command::Get { key: 1 }), Some(Reply::Bulk(None)));
        assert_eq!(model.execute(&set(1)), Some(Reply::Simple(b"OK".to_vec())));
        let more = Value {
            owner: 5,
            number: 2,
            size: 20,
        };
        assert_eq!(
            model.execute(&Command::Append { key: 1, value: more }),
            Some(Reply::Integer(40))
        );
        assert_eq!(model.execute(&Command::Del { key: 1 }), Some(Reply::Integer(1)));
        assert_eq!(model.execute(&Command::Del { key: 1 }), Some(Reply::Integer(0)));
        assert_eq!(
            model.execute(&Command::Incr { counter: 0 }),
            Some(Reply::Integer(1))
        );
        assert_eq!(
            model.execute(&Command::Incr { counter: 0 }),
            Some(Reply::Integer(2))
        );
        assert_eq!(model.execute(&Command::IncrShared { counter: 0 }), None);
    }

    #[test]
    fn an_earlier_value_counts_the_writes_that_are_missing() {
        let mut model = Model::new(5);
        model.execute(&set(1));
        model.execute(&set(2));
        model.execute(&set(3));
        let value = |number| {
            Value {
                owner: 5,
                number,
                size: 20,
            }
            .bytes()
        };
        let key = key_name(5, 1);
        assert_eq!(model.judge(&key, Some(&value(3))), Found::Right);
        assert_eq!(model.judge(&key, Some(&value(2))), Found::Lost(1));
        assert_eq!(model.judge(&key, Some(&value(1))), Found::Lost(2));
        assert_eq!(model.judge(&key, None), Found::Lost(3));
        assert_eq!(model.judge(&key, Some(b"other")), Found::Wrong);
    }
}
