//! The log against a disk that remembers everything that was asked of it, so that power can fail after any request and
//! in the middle of any write.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use std::format;

use super::*;
use crate::disk::DiskError;
use crate::limits::{ARGUMENTS_MAX, BATCHES_OUT, COMMAND_LOGGED_MAX, KEY_MAX, LOG_STEP, VALUE_MAX};

const SECTORS: u64 = 16 + 2 * 256;

/// What happened to the medium.
#[derive(Clone, Debug)]
enum Event {
    Write(u64, Vec<u8>),
    Flush,
}

/// A disk in memory that does each request at once, reports it when polled, and keeps a journal.
#[derive(Debug, Default)]
struct Journal {
    medium: Vec<u8>,
    events: Vec<Event>,
    done: VecDeque<Done>,
    /// Fail this many events from now.
    fail_in: Option<usize>,
    is_in_order: bool,
    /// Tells at most one end each time that it is driven, so that several batches are on their way.
    is_slow: bool,
    has_told: bool,
}

impl Journal {
    fn blank() -> Self {
        Self::with_sectors(SECTORS)
    }

    fn with_sectors(sectors: u64) -> Self {
        Self::holding(alloc::vec![0; sectors as usize * SECTOR_BYTES])
    }

    fn holding(medium: Vec<u8>) -> Self {
        Journal {
            medium,
            ..Journal::default()
        }
    }

    fn writes(&self) -> usize {
        let is_write = |event: &&Event| matches!(event, Event::Write(..));
        self.events.iter().filter(is_write).count()
    }

    fn fails_now(&mut self) -> bool {
        let fails = self.fail_in == Some(0);
        self.fail_in = self.fail_in.map(|left| left.saturating_sub(1));
        fails
    }
}

fn put_sectors(medium: &mut [u8], sector: u64, bytes: &[u8]) {
    let at = sector as usize * SECTOR_BYTES;
    medium[at..at + bytes.len()].copy_from_slice(bytes);
}

impl Disk for Journal {
    fn sectors(&self) -> u64 {
        (self.medium.len() / SECTOR_BYTES) as u64
    }

    fn needs_flush(&self) -> bool {
        true
    }

    fn flushes_in_order(&self) -> bool {
        self.is_in_order
    }

    fn submit(&mut self, tag: Tag, request: Request) -> Result<(), Request> {
        let result = if self.fails_now() { Err(DiskError) } else { Ok(()) };
        let bytes = match request {
            Request::Read { sector, mut bytes } => {
                let at = sector as usize * SECTOR_BYTES;
                let end = at + bytes.len();
                bytes.copy_from_slice(&self.medium[at..end]);
                bytes
            }
            Request::Write { sector, bytes } => {
                put_sectors(&mut self.medium, sector, &bytes);
                self.events.push(Event::Write(sector, bytes.clone()));
                bytes
            }
            Request::Flush => {
                self.events.push(Event::Flush);
                Vec::new()
            }
        };
        self.done.push_back(Done { tag, result, bytes });
        Ok(())
    }

    fn kick(&mut self) {}

    fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    fn poll(&mut self) -> Option<Done> {
        self.has_told = self.is_slow && !self.has_told && !self.done.is_empty();
        match self.is_slow && !self.has_told {
            true => None,
            false => self.done.pop_front(),
        }
    }

    fn wait(&mut self) {}
}

type Contents = BTreeMap<Vec<u8>, Vec<u8>>;

fn contents(store: &Store) -> Contents {
    store
        .after(None)
        .map(|(key, entry)| (key.to_vec(), entry.value().to_vec()))
        .collect()
}

/// A guest's life: a store, its log, and what the outside was promised on the way.
struct Life {
    disk: Journal,
    store: Store,
    log: Log,
    /// The contents after each group.
    states: Vec<(Group, Contents)>,
    /// How many events there were when a group was first known to be durable.
    promises: Vec<(usize, Group)>,
}

impl Life {
    fn begin(mut disk: Journal) -> Self {
        let mut store = Store::new();
        let log = open(&mut disk, &mut store, 7, Time::ZERO).unwrap();
        let states = alloc::vec![(Group::ZERO, contents(&store))];
        Life {
            disk,
            store,
            log,
            states,
            promises: Vec::new(),
        }
    }

    fn change(&mut self, op: &Op<'_>) {
        assert_eq!(self.log.readiness(), Readiness::Ready);
        let group = self.log.group();
        self.store.apply(op, group);
        self.log.append(op);
        self.states.retain(|(known, _)| *known != group);
        self.states.push((group, contents(&self.store)));
    }

    fn round(&mut self) {
        self.log.drive(&mut self.disk, &self.store, Time::from_nanos(1));
        self.promises.push((self.disk.events.len(), self.log.durable()));
    }

    fn settle(&mut self) {
        (0..200).for_each(|_| self.round());
        assert!(self.log.is_settled());
    }

    /// Overwrites a few keys until several compactions have passed.
    fn run(&mut self, steps: u32) {
        for step in 0..steps {
            let key = format!("key{}", step % 5);
            let value = format!("{step}").repeat(300 + 37 * (step as usize % 11));
            match step % 7 {
                3 => self.change(&Op::Append {
                    key: key.as_bytes(),
                    tail: b"tail",
                }),
                5 => self.change(&Op::Delete { key: key.as_bytes() }),
                _ => {
                    self.change(&Op::Put {
                        key: key.as_bytes(),
                        value: value.as_bytes(),
                        expires: Time::ZERO,
                    });
                }
            }
            self.round();
            while self.log.readiness() == Readiness::Later {
                self.round();
            }
        }
        self.settle();
    }

    /// What the outside was promised when so many events had happened.
    fn promised(&self, events: usize) -> Group {
        self.promises
            .iter()
            .filter(|(at, _)| *at <= events)
            .map(|(_, group)| *group)
            .max()
            .unwrap_or(Group::ZERO)
    }

    /// The medium recovers to a state that keeps every promise.
    fn check(&self, medium: Vec<u8>, promised: Group) {
        let mut store = Store::new();
        open(&mut Journal::holding(medium), &mut store, 8, Time::ZERO).unwrap();
        let found = contents(&store);
        let known = self
            .states
            .iter()
            .filter(|(group, _)| *group >= promised)
            .any(|(_, state)| *state == found);
        // Deletions may lead back to an earlier state, which is as good.
        assert!(known, "{} keys, promised {promised:?}", found.len());
    }
}

#[test]
fn a_blank_disk_is_an_empty_store_and_stays_one() {
    let life = Life::begin(Journal::blank());
    let again = Life::begin(Journal::holding(life.disk.medium));
    assert!(again.store.is_empty());
}

#[test]
fn what_was_durable_is_there_after_a_power_off() {
    let mut life = Life::begin(Journal::blank());
    life.change(&Op::Put {
        key: b"a",
        value: b"1",
        expires: Time::ZERO,
    });
    life.settle();
    assert_eq!(life.log.durable(), Group::ZERO.next());
    let again = Life::begin(Journal::holding(life.disk.medium));
    assert_eq!(contents(&again.store), contents(&life.store));
}

#[test]
fn a_batch_sets_out_before_the_one_ahead_of_it_is_done_and_what_comes_then_gathers() {
    let mut life = Life::begin(Journal::blank());
    life.disk.is_slow = true;
    let first = life.disk.writes();
    for (at, key) in [b"a", b"b", b"c", b"d"].into_iter().enumerate() {
        life.change(&Op::Put {
            key,
            value: b"1",
            expires: Time::ZERO,
        });
        // Nothing is told to be done before the second is driven.
        life.log.drive(&mut life.disk, &life.store, Time::ZERO);
        assert_eq!(life.disk.writes() - first, (at + 1).min(BATCHES_OUT), "{at}");
        life.disk.has_told = true;
    }
    life.settle();
    assert_eq!(life.disk.writes() - first, BATCHES_OUT + 1);
}

#[test]
fn power_may_fail_after_any_event_and_within_any_write() {
    fail_everywhere(Journal::blank());
}

#[test]
fn power_may_fail_at_any_point_on_a_disk_that_flushes_in_order() {
    fail_everywhere(Journal {
        is_in_order: true,
        ..Journal::blank()
    });
}

#[test]
fn power_may_fail_while_several_batches_are_on_their_way() {
    for is_in_order in [false, true] {
        fail_everywhere(Journal {
            is_in_order,
            is_slow: true,
            ..Journal::blank()
        });
    }
}

fn fail_everywhere(disk: Journal) {
    let mut life = Life::begin(disk);
    // Compactions included: the disk holds about fifty of these values.
    life.run(400);
    assert!(life.log.compactions() >= 3);

    let mut medium = Journal::blank().medium;
    let mut flushed = medium.clone();
    // The format of the blank disk comes first; before it there is nothing to recover.
    for (at, event) in life.disk.events.iter().enumerate() {
        let promised = life.promised(at);
        match event {
            Event::Write(sector, bytes) => {
                for torn in (0..bytes.len()).step_by(SECTOR_BYTES) {
                    let mut cut = medium.clone();
                    put_sectors(&mut cut, *sector, &bytes[..torn]);
                    life.check(cut, promised);
                }
                // This write reached the medium, those before it since the last flush did not.
                let mut alone = flushed.clone();
                put_sectors(&mut alone, *sector, bytes);
                life.check(alone, promised);
                put_sectors(&mut medium, *sector, bytes);
            }
            Event::Flush => flushed = medium.clone(),
        }
        life.check(medium.clone(), promised);
        life.check(flushed.clone(), promised);
    }
}

#[test]
fn a_second_life_continues_where_the_first_was_cut_off() {
    let mut life = Life::begin(Journal::blank());
    life.run(20);
    let Some(Event::Write(sector, bytes)) = life
        .disk
        .events
        .iter()
        .rev()
        .find(|event| matches!(event, Event::Write(..)))
        .cloned()
    else {
        panic!("nothing was written")
    };
    let mut medium = life.disk.medium.clone();
    put_sectors(&mut medium, sector, &alloc::vec![0x5a; bytes.len()]);

    let mut second = Life::begin(Journal::holding(medium));
    second.run(30);
    let third = Life::begin(Journal::holding(second.disk.medium));
    assert_eq!(contents(&third.store), contents(&second.store));
}

#[test]
fn a_disk_error_ends_all_promises_but_not_the_store() {
    let mut life = Life::begin(Journal::blank());
    life.disk.fail_in = Some(1);
    life.change(&Op::Put {
        key: b"a",
        value: b"1",
        expires: Time::ZERO,
    });
    (0..10).for_each(|_| life.round());
    assert_eq!(life.log.readiness(), Readiness::Failed);
    assert_eq!(life.log.durable(), Group::ZERO);
    assert!(life.log.is_settled());
}

/// Two batches are on their way, the older one's write has failed, and the disk has told nothing yet.
fn two_batches_of_which_the_older_one_fails() -> Life {
    let mut life = Life::begin(Journal {
        is_in_order: true,
        ..Journal::blank()
    });
    life.disk.is_slow = true;
    life.disk.fail_in = Some(0);
    for key in [b"a", b"b"] {
        life.change(&Op::Put {
            key,
            value: b"1",
            expires: Time::ZERO,
        });
        life.disk.has_told = true;
        life.log.drive(&mut life.disk, &life.store, Time::ZERO);
        life.disk.fail_in = None;
    }
    // Its flush has nothing to complain of.
    life.disk.done[1].result = Ok(());
    let ends: Vec<bool> = life.disk.done.iter().map(|done| done.result.is_ok()).collect();
    assert_eq!(ends, [false, true, true, true], "a write and a flush each");
    life
}

#[test]
fn a_batch_behind_one_that_failed_is_not_durable_although_it_was_written_and_flushed() {
    let mut life = two_batches_of_which_the_older_one_fails();
    (0..10).for_each(|_| life.round());
    assert!(life.disk.done.is_empty());
    assert_eq!(life.log.durable(), Group::ZERO);
    assert_eq!(life.log.readiness(), Readiness::Failed);
}

#[test]
fn a_batch_that_is_done_first_is_not_durable_before_the_older_one_nor_when_that_fails() {
    let mut life = two_batches_of_which_the_older_one_fails();
    life.disk.done.rotate_left(2);
    (0..2).for_each(|_| life.round());
    assert_eq!(
        life.disk.done.len(),
        2,
        "the younger one's write and flush are told"
    );
    assert_eq!(life.log.durable(), Group::ZERO);
    assert_ne!(life.log.readiness(), Readiness::Failed);

    (0..10).for_each(|_| life.round());
    assert_eq!(life.log.durable(), Group::ZERO);
    assert_eq!(life.log.readiness(), Readiness::Failed);
}

/// Changes as a command makes them; answers the most memory that log and disk held, an old buffer beside the new included.
fn command(life: &mut Life, ops: &[Op<'_>]) -> usize {
    let bytes = ops.iter().map(Op::encoded_len).sum();
    let old = life.log.gathered.len();
    let capacity = life.log.gathered.capacity();
    assert!(life.log.reserve(bytes, || usize::MAX));
    let is_moved = life.log.gathered.capacity() != capacity;
    let held = life.log.held();
    let place = life.log.gathered.as_ptr();
    ops.iter().for_each(|op| life.log.append(op));
    assert_eq!(place, life.log.gathered.as_ptr(), "there was room for all of it");
    held + if is_moved { old } else { 0 }
}

/// What the log may hold at most.
fn part(high: usize) -> usize {
    high + GROUP_BYTES + COMMAND_LOGGED_MAX + LOG_STEP
}

const SHORT: Op<'_> = Op::Put {
    key: b"a",
    value: &[7; 1000],
    expires: Time::ZERO,
};

static MANY: [Op<'_>; ARGUMENTS_MAX] = [Op::Delete { key: &[7; 17] }; ARGUMENTS_MAX];

#[test]
fn the_largest_command_is_within_the_logs_part_of_the_memory_though_it_comes_at_the_worst_moment() {
    let mut life = Life::begin(Journal {
        is_slow: true,
        ..Journal::with_sectors(1 << 14)
    });
    for _ in 0..=BATCHES_OUT {
        life.disk.has_told = true;
        life.log.drive(&mut life.disk, &life.store, Time::ZERO);
        while life.log.gathered.len() + SHORT.encoded_len() < GROUP_BYTES {
            command(&mut life, &[SHORT]);
        }
    }
    assert_eq!(life.log.readiness(), Readiness::Ready);
    let held = command(&mut life, &MANY);
    let most = part(LOG_HIGH_MAX);
    assert!((most - 2 * LOG_STEP..=most).contains(&held), "{held} of {most}");
}

#[test]
fn the_log_stays_within_its_part_of_the_memory_whatever_is_written() {
    let mut life = Life::begin(Journal {
        is_slow: true,
        ..Journal::with_sectors(1 << 17)
    });
    let value = alloc::vec![7; VALUE_MAX];
    let long = Op::Put {
        key: &value[..KEY_MAX],
        value: &value,
        expires: Time::ZERO,
    };
    let mut prng = crate::prng::Prng::new(&[5; 32]);
    for high in [GROUP_BYTES, LOG_HIGH_MAX] {
        life.log.set_high(high);
        let mut held = 0;
        for _ in 0..2000 {
            let ops = match prng.draw() % 64 {
                0 => &MANY[..],
                1..8 => &[long],
                _ => &[SHORT],
            };
            if life.log.readiness() == Readiness::Ready {
                held = command(&mut life, ops).max(held);
            }
            if prng.draw().is_multiple_of(4) {
                life.log.drive(&mut life.disk, &life.store, Time::ZERO);
                held = life.log.held().max(held);
            }
            life.disk.events.clear();
        }
        assert!(held <= part(high), "{held} of {}", part(high));
        (0..200).for_each(|_| life.log.drive(&mut life.disk, &life.store, Time::ZERO));
    }
}

#[test]
fn a_command_is_not_made_room_for_when_the_heap_has_none() {
    let mut life = Life::begin(Journal::blank());
    let group = life.log.gathered.clone();
    assert!(!life.log.reserve(VALUE_MAX, || VALUE_MAX));
    assert!(life.log.reserve(VALUE_MAX, || VALUE_MAX + LOG_STEP));
    assert!(life.log.reserve(VALUE_MAX, || 0), "it has the room now");
    assert_eq!(life.log.gathered, group);
}

#[test]
fn room_that_was_made_in_vain_does_not_travel_with_the_batch() {
    let mut life = Life::begin(Journal::blank());
    assert!(life.log.reserve(COMMAND_LOGGED_MAX, || usize::MAX));
    life.change(&Op::Delete { key: b"a" });
    life.disk.has_told = true;
    life.disk.is_slow = true;
    life.log.drive(&mut life.disk, &life.store, Time::ZERO);
    assert!(life.log.held() <= 2 * SECTOR_BYTES, "{}", life.log.held());
}

#[test]
fn a_disk_with_somebody_elses_data_is_refused() {
    let mut medium = Journal::blank().medium;
    medium[..8].copy_from_slice(b"mkfs.was");
    let refused = open(&mut Journal::holding(medium), &mut Store::new(), 1, Time::ZERO);
    assert_eq!(refused.err(), Some(OpenError::Foreign));
}

#[test]
fn a_log_that_lost_flushed_batches_is_refused() {
    let mut life = Life::begin(Journal::blank());
    life.run(120);
    assert!(life.log.compactions() > 0);
    let (first, _) = life.log.layout.unwrap().area(life.log.tail.link.generation);
    put_sectors(&mut life.disk.medium, first, &[0; SECTOR_BYTES]);
    let refused = open(
        &mut Journal::holding(life.disk.medium),
        &mut Store::new(),
        1,
        Time::ZERO,
    );
    assert_eq!(refused.err(), Some(OpenError::Damaged));
}

#[test]
fn random_bytes_on_the_disk_never_panic() {
    let mut life = Life::begin(Journal::blank());
    life.run(10);
    let mut prng = crate::prng::Prng::new(&[3; 32]);
    for _ in 0..2000 {
        let mut medium = life.disk.medium.clone();
        let at = prng.draw() as usize % (40 * SECTOR_BYTES);
        medium[at] ^= 1 << (prng.draw() % 8);
        let _ = open(&mut Journal::holding(medium), &mut Store::new(), 1, Time::ZERO);
    }
}
