//! What the demo's connections ask for, in a compact form, and how a seeded stream of it is made. Values are a function
//! of who wrote them and when, so that a stale or foreign value is recognised.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::resp::Words;

/// One request. Keys are numbers; each connection has its own name space, and there are a few shared counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Ping,
    Set {
        key: u16,
        value: Value,
    },
    Get {
        key: u16,
    },
    Append {
        key: u16,
        value: Value,
    },
    Del {
        key: u16,
    },
    /// A counter of this connection alone.
    Incr {
        counter: u16,
    },
    MSet {
        pairs: Vec<(u16, Value)>,
    },
    MGet {
        keys: Vec<u16>,
    },
    /// A counter that all connections touch.
    IncrShared {
        counter: u16,
    },
}

/// A value, by its number among all values that its connection ever wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) owner: u16,
    pub(crate) number: u32,
    pub(crate) size: u16,
}

impl Value {
    /// Its bytes: who and when in front, then letters that depend on both.
    pub(crate) fn bytes(self) -> Vec<u8> {
        let mut bytes = format!("{}.{}:", self.owner, self.number).into_bytes();
        let mut state = u64::from(self.number) << 16 | u64::from(self.owner);
        while bytes.len() < usize::from(self.size) {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            bytes.push(b'a' + ((state >> 33) % 26) as u8);
        }
        bytes
    }
}

impl Command {
    /// The words for the wire, as connection 0 would say them.
    pub(crate) fn words(&self) -> Words {
        self.words_of(0)
    }

    /// The words for the wire, as connection `owner` says them.
    pub(crate) fn words_of(&self, owner: u16) -> Words {
        let verb = |verb: &str| verb.as_bytes().to_vec();
        match self {
            Self::Ping => vec![verb("PING")],
            Self::Set { key, value } => vec![verb("SET"), key_name(owner, *key), value.bytes()],
            Self::Get { key } => vec![verb("GET"), key_name(owner, *key)],
            Self::Append { key, value } => vec![verb("APPEND"), key_name(owner, *key), value.bytes()],
            Self::Del { key } => vec![verb("DEL"), key_name(owner, *key)],
            Self::Incr { counter } => vec![verb("INCR"), counter_name(owner, *counter)],
            Self::MSet { pairs } => std::iter::once(verb("MSET"))
                .chain(
                    pairs
                        .iter()
                        .flat_map(|(key, value)| [key_name(owner, *key), value.bytes()]),
                )
                .collect(),
            Self::MGet { keys } => std::iter::once(verb("MGET"))
                .chain(keys.iter().map(|key| key_name(owner, *key)))
                .collect(),
            Self::IncrShared { counter } => vec![verb("INCR"), shared_name(*counter)],
        }
    }
}

/// The name of a connection's own key.
pub(crate) fn key_name(owner: u16, key: u16) -> Vec<u8> {
    format!("c{owner}:k{key}").into_bytes()
}

/// The name of a connection's own counter.
pub(crate) fn counter_name(owner: u16, counter: u16) -> Vec<u8> {
    format!("c{owner}:n{counter}").into_bytes()
}

/// The name of a shared counter.
pub(crate) fn shared_name(counter: u16) -> Vec<u8> {
    format!("shared:{counter}").into_bytes()
}

/// An endless seeded stream of requests of one connection.
pub(crate) struct Requests {
    rng: SmallRng,
    owner: u16,
    written: u32,
    /// About how long each key's value is, to keep APPEND from growing it for ever.
    sizes: Vec<usize>,
}

impl Requests {
    pub(crate) fn new(seed: u64, owner: u16) -> Self {
        let rng = SmallRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(owner));
        Self {
            rng,
            owner,
            written: 0,
            sizes: vec![0; usize::from(KEYS)],
        }
    }

    pub(crate) fn owner(&self) -> u16 {
        self.owner
    }

    /// The requests to send in one go: often one, in part a pipelined burst.
    pub(crate) fn burst(&mut self) -> Vec<Command> {
        let count = if self.rng.random_bool(0.5) {
            1
        } else {
            self.rng.random_range(2..=BURST_MAX)
        };
        (0..count).map(|_| self.next()).collect()
    }

    fn next(&mut self) -> Command {
        let key = self.rng.random_range(0..KEYS);
        match self.rng.random_range(0..100) {
            0..30 => Command::Set {
                key,
                value: self.value(key),
            },
            30..60 => Command::Get { key },
            60..68 if self.sizes[usize::from(key)] < APPEND_BELOW => self.append(key),
            60..68 => Command::Set {
                key,
                value: self.value(key),
            },
            68..74 => {
                self.sizes[usize::from(key)] = 0;
                Command::Del { key }
            }
            74..84 => Command::Incr {
                counter: key % COUNTERS,
            },
            84..88 => self.mset(),
            88..92 => Command::MGet {
                keys: (0..4).map(|_| self.rng.random_range(0..KEYS)).collect(),
            },
            92..99 => Command::IncrShared {
                counter: key % SHARED,
            },
            _ => Command::Ping,
        }
    }

    fn append(&mut self, key: u16) -> Command {
        let before = self.sizes[usize::from(key)];
        let value = self.value(key);
        self.sizes[usize::from(key)] += before;
        Command::Append { key, value }
    }

    fn mset(&mut self) -> Command {
        let first = self.rng.random_range(0..KEYS);
        let pairs = (0..3)
            .map(|step| (first + step) % KEYS)
            .map(|key| (key, self.value(key)))
            .collect();
        Command::MSet { pairs }
    }

    fn value(&mut self, key: u16) -> Value {
        let size = if self.rng.random_bool(0.02) {
            self.rng.random_range(1024..=LARGE_VALUE)
        } else {
            self.rng.random_range(16..=256)
        };
        self.written += 1;
        self.sizes[usize::from(key)] = usize::from(size);
        Value {
            owner: self.owner,
            number: self.written,
            size,
        }
    }
}

/// Keys of each connection.
pub(crate) const KEYS: u16 = 64;
/// Counters of each connection.
pub(crate) const COUNTERS: u16 = 4;
/// Counters that all connections touch.
pub(crate) const SHARED: u16 = 3;
const BURST_MAX: usize = 16;
const LARGE_VALUE: u16 = 8192;
const APPEND_BELOW: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_asks_the_same_questions() {
        let (mut one, mut same, mut other) = (Requests::new(7, 3), Requests::new(7, 3), Requests::new(8, 3));
        let asked: Vec<_> = (0..50).map(|_| one.burst()).collect();
        assert_eq!(asked, (0..50).map(|_| same.burst()).collect::<Vec<_>>());
        assert_ne!(asked, (0..50).map(|_| other.burst()).collect::<Vec<_>>());
    }

    #[test]
    fn a_value_tells_who_wrote_it_and_when() {
        let value = |owner, number| {
            Value {
                owner,
                number,
                size: 32,
            }
            .bytes()
        };
        assert_eq!(value(3, 9).len(), 32);
        assert!(value(3, 9).starts_with(b"3.9:"));
        assert_ne!(value(3, 9)[4..], value(3, 8)[4..]);
    }
}
