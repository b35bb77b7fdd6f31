//! The keys and values in memory. Commands read it, and change it by [`Op`]s only; recovery replays the same ones. Knows
//! neither disk nor network.

pub mod op;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Bound;

use crate::limits::VALUE_MAX;
use crate::units::{Group, Time};
use op::{OP_BYTES, Op};

/// What an entry takes beside the bytes of key and value: its place in the tree, and the allocator's share.
pub const ENTRY_BYTES: usize = 112;
/// The same at worst: nodes that are not half full, and two blocks that the allocator had to round up by the most.
const ENTRY_BYTES_MAX: usize = 208;
/// A new entry may split a node, and every node above it.
const SPLITS_BYTES_MAX: usize = 8 << 10;
/// A value's memory is kept for a shorter one as long as the waste stays below this.
const SLACK_MAX: usize = 256;

/// A value that grows by bits gets room for an eighth more than it needs, and for so much at least: else each bit would
/// move it.
const APPEND_SLACK_MIN: usize = 64;

/// Memory that a change asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// What the store takes more than before.
    pub kept: usize,
    /// What the change takes while it is made: what grows may have to move, and is there twice meanwhile.
    pub taken: usize,
}

impl Growth {
    /// New keys and values of so many bytes.
    pub fn of_new(bytes: usize, entries: usize) -> Self {
        Growth {
            kept: bytes + entries * ENTRY_BYTES,
            taken: bytes + entries * ENTRY_BYTES_MAX + SPLITS_BYTES_MAX,
        }
    }
}

/// A key's value.
#[derive(Debug)]
pub struct Entry {
    value: Vec<u8>,
    expires: Time,
    group: Group,
}

impl Entry {
    /// The value.
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// When the key goes away; [`Time::ZERO`] for never.
    pub fn expires(&self) -> Time {
        self.expires
    }

    /// The group that wrote it: who shows the value depends on it.
    pub fn group(&self) -> Group {
        self.group
    }

    /// Whether its time is over.
    pub fn is_over(&self, now: Time) -> bool {
        self.expires != Time::ZERO && self.expires <= now
    }

    /// What it takes to append so many bytes.
    pub fn growth(&self, more: usize) -> Growth {
        let (old, new) = (self.value.capacity(), self.capacity_for(more));
        Growth {
            kept: new - old,
            taken: if new > old { new } else { 0 },
        }
    }

    /// How much room the value must have for so many bytes more. Never doubled: [`Entry::growth`] is asked before.
    fn capacity_for(&self, more: usize) -> usize {
        let len = self.value.len() + more;
        if len <= self.value.capacity() {
            return self.value.capacity();
        }
        (len + (len / 8).max(APPEND_SLACK_MIN)).min(VALUE_MAX.max(len))
    }

    fn append(&mut self, tail: &[u8]) {
        let capacity = self.capacity_for(tail.len());
        self.value.reserve_exact(capacity - self.value.len());
        self.value.extend_from_slice(tail);
    }

    fn memory(&self, key: &[u8]) -> usize {
        key.len() + self.value.capacity() + ENTRY_BYTES
    }

    fn encoded(&self, key: &[u8]) -> u64 {
        (key.len() + self.value.len() + OP_BYTES) as u64
    }
}

/// What a search for a key whose time is over has come to.
#[derive(Debug)]
pub struct Search {
    /// Such a key.
    pub over: Option<Box<[u8]>>,
    /// The last key that was looked at; none at the end of all keys.
    pub last: Option<Box<[u8]>>,
}

/// All keys.
#[derive(Debug, Default)]
pub struct Store {
    // A tree rather than a hash table: it never has to move all entries at once, and compaction and expiry can come
    // back to a place in it.
    entries: BTreeMap<Box<[u8]>, Entry>,
    memory: usize,
    encoded: u64,
    expiring: usize,
    gone: Group,
}

impl Store {
    /// A store without keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// A key's entry, unless its time is over.
    pub fn get(&self, key: &[u8], now: Time) -> Option<&Entry> {
        self.entries.get(key).filter(|entry| !entry.is_over(now))
    }

    /// The group that someone depends on who is told that a key is not there.
    pub fn gone(&self) -> Group {
        self.gone
    }

    /// How many keys there are; those whose time is over count until they are swept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many keys have a time to live.
    pub fn expiring(&self) -> usize {
        self.expiring
    }

    /// About how much memory the keys take.
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// How many bytes a log needs to hold every key once.
    pub fn encoded(&self) -> u64 {
        self.encoded
    }

    /// The keys after one, or all.
    pub fn after(&self, key: Option<&[u8]>) -> impl Iterator<Item = (&[u8], &Entry)> {
        let from = key.map_or(Bound::Unbounded, Bound::Excluded);
        self.entries
            .range::<[u8], _>((from, Bound::Unbounded))
            .map(|(key, entry)| (&**key, entry))
    }

    /// Looks among the `most` keys after `from` for one whose time is over.
    pub fn find_over(&self, from: Option<&[u8]>, most: usize, now: Time) -> Search {
        let mut search = Search {
            over: None,
            last: None,
        };
        for (key, entry) in self.after(from).take(most) {
            search.last = Some(key.into());
            if entry.is_over(now) {
                search.over = Some(key.into());
                break;
            }
        }
        search
    }

    /// Makes a change that belongs to `group`.
    pub fn apply(&mut self, op: &Op<'_>, group: Group) {
        match *op {
            Op::Put { key, value, expires } => self.change(key, group, |entry| {
                if entry.value.capacity() > value.len() + SLACK_MAX {
                    entry.value = Vec::new();
                }
                entry.value.clear();
                entry.value.reserve_exact(value.len());
                entry.value.extend_from_slice(value);
                entry.expires = expires;
            }),
            Op::Append { key, tail } => self.change(key, group, |entry| entry.append(tail)),
            Op::Expire { key, expires } => {
                if self.entries.contains_key(key) {
                    self.change(key, group, |entry| entry.expires = expires);
                }
            }
            Op::Delete { key } => {
                if let Some((key, entry)) = self.entries.remove_entry(key) {
                    self.discount(&key, &entry);
                    self.gone = group;
                }
            }
            Op::Clear => {
                *self = Store {
                    gone: group,
                    ..Store::default()
                };
            }
        }
    }

    /// Moves every expiry, because the clock that it was set by is not the clock of now.
    pub fn rebase(&mut self, then: Time, now: Time) {
        for entry in self
            .entries
            .values_mut()
            .filter(|entry| entry.expires != Time::ZERO)
        {
            entry.expires = now.after(entry.expires.since(then)).max(Time::from_nanos(1));
        }
    }

    fn change(&mut self, key: &[u8], group: Group, change: impl FnOnce(&mut Entry)) {
        // Looked up twice only when the key is new: the tree's entry interface would copy the key every time.
        if let Some(entry) = self.entries.get_mut(key) {
            self.memory -= entry.memory(key);
            self.encoded -= entry.encoded(key);
            self.expiring -= usize::from(entry.expires != Time::ZERO);
            change(entry);
            entry.group = group;
            self.memory += entry.memory(key);
            self.encoded += entry.encoded(key);
            self.expiring += usize::from(entry.expires != Time::ZERO);
            return;
        }
        let mut entry = Entry {
            value: Vec::new(),
            expires: Time::ZERO,
            group,
        };
        change(&mut entry);
        self.memory += entry.memory(key);
        self.encoded += entry.encoded(key);
        self.expiring += usize::from(entry.expires != Time::ZERO);
        self.entries.insert(key.into(), entry);
    }

    fn discount(&mut self, key: &[u8], entry: &Entry) {
        self.memory -= entry.memory(key);
        self.encoded -= entry.encoded(key);
        self.expiring -= usize::from(entry.expires != Time::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put<'a>(key: &'a [u8], value: &'a [u8], expires: Time) -> Op<'a> {
        Op::Put { key, value, expires }
    }

    #[test]
    fn counts_come_back_to_nothing_when_every_key_is_gone() {
        let mut store = Store::new();
        store.apply(&put(b"a", b"1", Time::from_nanos(9)), Group::ZERO);
        store.apply(&put(b"a", b"longer", Time::ZERO), Group::ZERO);
        store.apply(
            &Op::Append {
                key: b"b",
                tail: b"xyz",
            },
            Group::ZERO,
        );
        store.apply(
            &Op::Expire {
                key: b"b",
                expires: Time::from_nanos(5),
            },
            Group::ZERO,
        );
        store.apply(&Op::Delete { key: b"a" }, Group::ZERO);
        store.apply(&Op::Delete { key: b"b" }, Group::ZERO);
        assert_eq!(
            (store.len(), store.memory(), store.encoded(), store.expiring()),
            (0, 0, 0, 0)
        );
    }

    #[test]
    fn a_key_whose_time_is_over_is_not_found() {
        let mut store = Store::new();
        store.apply(&put(b"a", b"1", Time::from_nanos(10)), Group::ZERO);
        assert!(store.get(b"a", Time::from_nanos(9)).is_some());
        assert!(store.get(b"a", Time::from_nanos(10)).is_none());
        assert_eq!(
            store.find_over(None, 8, Time::from_nanos(10)).over.as_deref(),
            Some(&b"a"[..])
        );
    }

    #[test]
    fn a_value_that_is_appended_to_takes_what_was_foretold_and_seldom_moves() {
        let mut store = Store::new();
        store.apply(&put(b"a", b"1", Time::ZERO), Group::ZERO);
        let mut moves = 0;
        for len in 1..VALUE_MAX {
            let before = store.memory();
            let growth = store.entries[&b"a"[..]].growth(1);
            store.apply(
                &Op::Append {
                    key: b"a",
                    tail: b"2",
                },
                Group::ZERO,
            );
            assert_eq!(store.memory() - before, growth.kept);
            let capacity = store.entries[&b"a"[..]].value.capacity();
            assert!(growth.taken == 0 || growth.taken == capacity);
            assert!(capacity <= (len + 1 + (len / 8).max(APPEND_SLACK_MIN) + 1).min(VALUE_MAX));
            moves += usize::from(growth.taken > 0);
        }
        assert!(moves < 100, "{moves}");
    }

    #[test]
    fn a_time_to_live_goes_on_where_the_last_clock_stopped() {
        let mut store = Store::new();
        store.apply(&put(b"a", b"1", Time::from_nanos(1000)), Group::ZERO);
        store.rebase(Time::from_nanos(900), Time::from_nanos(5));
        assert_eq!(
            store.get(b"a", Time::from_nanos(6)).unwrap().expires(),
            Time::from_nanos(105)
        );
    }
}
