//! Frames from a plain guest, and frames held for a protected one.

use std::os::unix::net::UnixDatagram;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::fake::{Driver, WRITE, buffer, frame, tap};

struct Bench {
    tx: Tx,
    tap: Tap,
    wire: UnixDatagram,
    driver: Driver,
}

fn bench() -> Bench {
    let (tap, wire) = tap();
    Bench {
        tx: Tx::default(),
        tap,
        wire,
        driver: Driver::new(),
    }
}

impl Bench {
    fn send(&mut self) -> Result<bool, BrokenQueue> {
        self.tx.send_ready(&mut self.driver.lock(), &self.tap)
    }

    fn on_the_wire(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 70_000];
        let length = self.wire.recv(&mut bytes).ok()?;
        bytes.truncate(length);
        Some(bytes)
    }

    fn put(&self, at: GuestAddress, bytes: &[u8]) {
        self.driver.memory.write_slice(bytes, at).unwrap();
    }
}

#[test]
fn a_frame_in_pieces_leaves_whole_and_its_chain_comes_back() {
    let mut bench = bench();
    let sent = frame(300, 7);
    bench.put(buffer(0), &sent[..12]);
    bench.put(buffer(1), &sent[12..100]);
    bench.put(buffer(2), &sent[100..]);
    let head = bench
        .driver
        .offer(&[(buffer(0), 12, 0), (buffer(1), 88, 0), (buffer(2), 200, 0)]);
    assert!(!bench.send().unwrap());
    assert_eq!(bench.on_the_wire(), Some(sent));
    assert_eq!(bench.driver.next_used(), Some((head, 0)));
}

#[test]
fn frames_leave_in_order() {
    let mut bench = bench();
    for number in 0..3 {
        bench.put(buffer(number), &frame(60, number as u8));
        bench.driver.offer(&[(buffer(number), 60, 0)]);
    }
    bench.send().unwrap();
    for number in 0..3 {
        assert_eq!(bench.on_the_wire(), Some(frame(60, number)));
    }
}

#[test]
fn what_is_no_frame_comes_back_and_nothing_leaves() {
    let mut bench = bench();
    let heads = [
        bench.driver.offer(&[(buffer(0), 5, 0)]),
        bench
            .driver
            .offer(&[(buffer(0), 60_000, 0), (buffer(1), 60_000, 0)]),
        bench.driver.offer(&[(buffer(200), 60, 0)]),
        bench.driver.offer(&[(buffer(0), 60, WRITE)]),
        bench.driver.offer(&[(buffer(0), 60, WRITE), (buffer(1), 60, 0)]),
        bench.driver.offer_nonsense(),
    ];
    bench.send().unwrap();
    assert_eq!(bench.on_the_wire(), None);
    for head in heads {
        assert_eq!(bench.driver.next_used(), Some((head, 0)));
    }
}

#[test]
fn a_chain_that_loops_comes_back() {
    let mut bench = bench();
    // Descriptor 0 continues at 1 and so on round the table; the last continues at 0.
    let round = [(buffer(0), 60, 1); 16];
    let head = bench.driver.offer(&round);
    bench.send().unwrap();
    assert_eq!(bench.on_the_wire(), None);
    assert_eq!(bench.driver.next_used(), Some((head, 0)));
}

#[test]
fn a_queue_that_makes_no_sense_is_broken_and_not_followed() {
    let mut bench = bench();
    bench.driver.claim_available(500);
    assert!(matches!(bench.send(), Err(BrokenQueue::Available(_))));
}

#[test]
fn an_address_at_the_end_of_all_addresses_is_no_frame() {
    let mut bench = bench();
    bench.driver.offer(&[(GuestAddress(u64::MAX - 10), 60, 0)]);
    bench.send().unwrap();
    assert_eq!(bench.on_the_wire(), None);
}

#[test]
fn a_full_outbox_takes_no_more() {
    let mut held = HeldFrames::default();
    let mut taken = 0;
    while held.has_room() {
        held.hold(LogOffset::ZERO, vec![0; FRAME_BYTES_MAX]);
        taken += 1;
    }
    assert!((200..300).contains(&taken), "16 MiB of the longest frames");
    assert_eq!(held.discard(), taken);
    assert!(held.has_room());
}

#[test]
fn a_ring_that_ends_beyond_memory_is_broken() {
    let mut bench = bench();
    bench.driver.move_available_ring_to_the_end_of_memory();
    bench.driver.claim_available(1);
    assert!(matches!(bench.send(), Err(BrokenQueue::NoEntry)));
}
