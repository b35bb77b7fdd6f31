//! The vocabulary of numbers and names that hosts, processes and the arbiter share. Everybody uses it.
//! It never does arithmetic for its callers: a position is not a count, and only what makes sense is offered.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::MAX_NODE_NAME;

/// Declares a newtype over an unsigned integer with the few operations that all of them share.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident($raw:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name($raw);

        impl $name {
            /// The first value.
            pub const ZERO: Self = Self(0);

            /// Wraps a number that is known to be one of these.
            pub const fn new(raw: $raw) -> Self {
                Self(raw)
            }

            /// The plain number, for wires, rings and guest memory.
            pub const fn get(self) -> $raw {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

/// Declares a number of which each one has a successor.
macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        number!($(#[$doc])* $name(u64));

        impl $name {
            /// The last value; nothing ever comes after it.
            pub const MAX: Self = Self(u64::MAX);

            /// The one after this.
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }

            /// The one `count` after this.
            pub const fn advance(self, count: u64) -> Self {
                Self(self.0.saturating_add(count))
            }

            /// How many steps lead from `earlier` to this; none if `earlier` is not earlier.
            pub const fn since(self, earlier: Self) -> u64 {
                self.0.saturating_sub(earlier.0)
            }
        }
    };
}

counter! {
    /// How many synchronous exits the VM has made since power-on: the one clock that both hosts share.
    Position
}
counter! {
    /// How many records come before this one, since power-on. It never restarts, not even in a new term.
    LogOffset
}
counter! {
    /// Which reign of which primary. The arbiter hands terms out, each once.
    Term
}
number! {
    /// Which device of the VM.
    DeviceId(u8)
}
number! {
    /// Which queue of a device.
    QueueIndex(u16)
}
number! {
    /// The head of a descriptor chain: its index in the queue's descriptor table.
    Head(u16)
}
number! {
    /// The guest's own clock: nanoseconds since power-on, moved only in windows.
    GuestTime(u64)
}

/// What a host is called in the configuration: 1 to 32 of `a-z`, `0-9` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

/// Why a word is not the name of a host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadNodeName {
    /// It has no characters, or too many.
    #[error("A host's name has 1 to {MAX_NODE_NAME} characters, this one has {0}")]
    Length(usize),
    /// It has a character that names do not have.
    #[error("A host's name is made of a-z, 0-9 and -, this one contains {0:?}")]
    Character(char),
}

impl NodeName {
    /// Checks a word from the configuration or from a peer.
    pub fn new(name: &str) -> Result<Self, BadNodeName> {
        if name.is_empty() || name.len() > MAX_NODE_NAME {
            return Err(BadNodeName::Length(name.chars().count()));
        }
        match name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
            Some(stranger) => Err(BadNodeName::Character(stranger)),
            None => Ok(Self(name.to_owned())),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for NodeName {
    type Err = BadNodeName;

    fn from_str(text: &str) -> Result<Self, BadNodeName> {
        Self::new(text)
    }
}

impl TryFrom<String> for NodeName {
    type Error = BadNodeName;

    fn try_from(text: String) -> Result<Self, BadNodeName> {
        Self::new(&text)
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0
    }
}

/// One start of one process: random, so that a process that comes back is not taken for the one that left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Incarnation(u128);

/// The word is not 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("An incarnation is 32 hexadecimal digits")]
pub struct BadIncarnation;

impl Incarnation {
    /// Wraps a number that the caller drew at random.
    pub const fn new(random: u128) -> Self {
        Self(random)
    }

    /// The plain number, for wires and stores.
    pub const fn get(self) -> u128 {
        self.0
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Incarnation {
    type Err = BadIncarnation;

    fn from_str(text: &str) -> Result<Self, BadIncarnation> {
        let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        if !digits {
            return Err(BadIncarnation);
        }
        u128::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_| BadIncarnation)
    }
}

impl TryFrom<String> for Incarnation {
    type Error = BadIncarnation;

    fn try_from(text: String) -> Result<Self, BadIncarnation> {
        text.parse()
    }
}

impl From<Incarnation> for String {
    fn from(incarnation: Incarnation) -> Self {
        incarnation.to_string()
    }
}

/// Who holds a term: which host, and which start of its process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// The host.
    pub node: NodeName,
    /// The start of its process.
    pub incarnation: Incarnation,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.node, self.incarnation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_stranger_in_it_is_told_which() {
        assert_eq!(NodeName::new("a_b"), Err(BadNodeName::Character('_')));
    }

    #[test]
    fn an_empty_name_and_a_long_name_are_refused() {
        assert_eq!(NodeName::new(""), Err(BadNodeName::Length(0)));
        assert_eq!(NodeName::new(&"a".repeat(33)), Err(BadNodeName::Length(33)));
    }

    #[test]
    fn an_incarnation_reads_back_what_it_wrote() {
        let drawn = Incarnation::new(0x00ff_0000_0000_0000_0000_0000_0000_0001);
        assert_eq!(drawn.to_string().parse(), Ok(drawn));
        assert_eq!("+".repeat(32).parse::<Incarnation>(), Err(BadIncarnation));
    }

    #[test]
    fn the_last_offset_has_no_successor() {
        assert_eq!(LogOffset::MAX.next(), LogOffset::MAX);
        assert_eq!(LogOffset::ZERO.since(LogOffset::new(4)), 0);
    }
}
