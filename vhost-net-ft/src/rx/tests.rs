//! Frames into the buffers of a plain guest: whole, spread, refused, and late.

use std::os::unix::net::UnixDatagram;

use super::*;
use crate::fake::{Driver, WRITE, buffer, frame, tap};
use crate::frame::LEGACY_HEADER;

struct Bench {
    rx: Rx,
    tap: Tap,
    wire: UnixDatagram,
    driver: Driver,
}

fn bench(mergeable: bool) -> Bench {
    let (tap, wire) = tap();
    let mut rx = Rx::default();
    rx.reset(mergeable, HEADER);
    Bench {
        rx,
        tap,
        wire,
        driver: Driver::new(),
    }
}

impl Bench {
    fn deliver(&mut self) -> Result<Burst, BrokenQueue> {
        self.rx.deliver(&self.tap, &mut self.driver.lock())
    }
}

/// What the guest finds: the frame with the count of buffers in its header.
fn counted(mut frame: Vec<u8>, buffers: u8) -> Vec<u8> {
    frame[NUM_BUFFERS] = buffers;
    frame
}

#[test]
fn a_frame_goes_into_the_next_buffer() {
    let mut bench = bench(false);
    let head = bench
        .driver
        .offer(&[(buffer(0), 12, WRITE), (buffer(1), 2000, WRITE)]);
    bench.wire.send(&frame(100, 1)).unwrap();
    assert!(matches!(bench.deliver(), Ok(Burst::Empty)));
    assert_eq!(bench.driver.next_used(), Some((head, 100)));
    let expected = counted(frame(100, 1), 1);
    assert_eq!(bench.driver.read(buffer(0), 12), expected[..12]);
    assert_eq!(bench.driver.read(buffer(1), 88), expected[12..]);
}

#[test]
fn a_driver_with_the_short_header_finds_its_frame_as_it_came() {
    let mut bench = bench(false);
    bench.rx.reset(false, LEGACY_HEADER);
    let head = bench
        .driver
        .offer(&[(buffer(0), 10, WRITE), (buffer(1), 2000, WRITE)]);
    let came = vec![0xab; 100];
    bench.wire.send(&came).unwrap();
    assert!(matches!(bench.deliver(), Ok(Burst::Empty)));
    assert_eq!(bench.driver.next_used(), Some((head, 100)));
    assert_eq!(bench.driver.read(buffer(0), 10), came[..10]);
    assert_eq!(bench.driver.read(buffer(1), 90), came[10..]);
}

#[test]
fn a_long_frame_is_spread_over_mergeable_buffers() {
    let mut bench = bench(true);
    let heads = [0, 1, 2].map(|number| bench.driver.offer(&[(buffer(number), 1000, WRITE)]));
    bench.wire.send(&frame(2500, 9)).unwrap();
    assert!(matches!(bench.deliver(), Ok(Burst::Empty)));
    let expected = counted(frame(2500, 9), 3);
    assert_eq!(bench.driver.next_used(), Some((heads[0], 1000)));
    assert_eq!(bench.driver.next_used(), Some((heads[1], 1000)));
    assert_eq!(bench.driver.next_used(), Some((heads[2], 500)));
    let found = [
        bench.driver.read(buffer(0), 1000),
        bench.driver.read(buffer(1), 1000),
        bench.driver.read(buffer(2), 500),
    ];
    assert_eq!(found.concat(), expected);
}

#[test]
fn a_frame_waits_for_buffers_and_takes_none_before_there_are_enough() {
    let mut bench = bench(true);
    let first = bench.driver.offer(&[(buffer(0), 1000, WRITE)]);
    bench.wire.send(&frame(1500, 3)).unwrap();
    assert!(matches!(bench.deliver(), Ok(Burst::NoRoom)));
    assert_eq!(bench.driver.next_used(), None);

    let second = bench.driver.offer(&[(buffer(1), 1000, WRITE)]);
    assert!(matches!(bench.deliver(), Ok(Burst::Empty)));
    assert_eq!(bench.driver.next_used(), Some((first, 1000)));
    assert_eq!(bench.driver.next_used(), Some((second, 500)));
}

#[test]
fn a_frame_too_long_for_a_buffer_that_cannot_be_merged_is_lost_and_the_buffer_is_not() {
    let mut bench = bench(false);
    let head = bench.driver.offer(&[(buffer(0), 1000, WRITE)]);
    bench.driver.offer(&[(buffer(1), 1000, WRITE)]);
    bench.wire.send(&frame(1500, 0)).unwrap();
    bench.wire.send(&frame(60, 5)).unwrap();
    assert!(matches!(bench.deliver(), Ok(Burst::Empty)));
    assert_eq!(bench.driver.next_used(), Some((head, 60)));
    assert_eq!(bench.driver.next_used(), None);
    assert_eq!(bench.driver.read(buffer(0), 60), counted(frame(60, 5), 1));
}

#[test]
fn bad_buffers_go_back_empty_and_good_ones_behind_them_are_used() {
    let mut bench = bench(true);
    let readable = bench.driver.offer(&[(buffer(0), 1000, 0)]);
    let small = bench.driver.offer(&[(buffer(1), 8, WRITE)]);
    let nonsense = bench.driver.offer_nonsense();
    let outside = bench.driver.offer(&[(buffer(200), 1000, WRITE)]);
    let good = bench.driver.offer(&[(buffer(2), 1000, WRITE)]);
    bench.wire.send(&frame(60, 1)).unwrap();
    assert!(matches!(bench.deliver(), Ok(Burst::Empty)));
    for head in [readable, small, nonsense, outside] {
        assert_eq!(bench.driver.next_used(), Some((head, 0)));
    }
    assert_eq!(bench.driver.next_used(), Some((good, 60)));
}

#[test]
fn a_bad_buffer_in_the_middle_of_a_frame_takes_the_ones_before_it_along() {
    let mut bench = bench(true);
    let first = bench.driver.offer(&[(buffer(0), 1000, WRITE)]);
    let bad = bench.driver.offer_nonsense();
    let third = bench.driver.offer(&[(buffer(1), 2000, WRITE)]);
    bench.wire.send(&frame(1500, 1)).unwrap();
    assert!(matches!(bench.deliver(), Ok(Burst::Empty)));
    assert_eq!(bench.driver.next_used(), Some((first, 0)));
    assert_eq!(bench.driver.next_used(), Some((bad, 0)));
    assert_eq!(bench.driver.next_used(), Some((third, 1500)));
}

#[test]
fn a_head_beyond_the_queue_breaks_it() {
    let mut bench = bench(true);
    bench.driver.announce(999);
    bench.wire.send(&frame(60, 1)).unwrap();
    assert!(matches!(bench.deliver(), Err(BrokenQueue::Head(head)) if head == Head::new(999)));
}

#[test]
fn an_available_index_that_ran_away_breaks_the_queue() {
    let mut bench = bench(true);
    bench.driver.claim_available(1000);
    bench.wire.send(&frame(60, 1)).unwrap();
    assert!(matches!(bench.deliver(), Err(BrokenQueue::Available(_))));
}

#[test]
fn what_is_no_frame_is_skipped() {
    let mut bench = bench(true);
    let head = bench.driver.offer(&[(buffer(0), 1000, WRITE)]);
    bench.wire.send(&[1; 20]).unwrap();
    bench.wire.send(&frame(60, 1)).unwrap();
    assert!(matches!(bench.deliver(), Ok(Burst::Empty)));
    assert_eq!(bench.driver.next_used(), Some((head, 60)));
}

#[test]
fn a_backup_reads_and_forgets() {
    let mut bench = bench(true);
    (0..5).for_each(|_| assert_eq!(bench.wire.send(&frame(60, 1)).unwrap(), 60));
    assert!(matches!(bench.rx.discard(&bench.tap), Burst::Empty));
    let room = &mut [0; 100][..];
    assert!(
        bench.tap.receive(&mut VolatileSlice::from(room)).is_err(),
        "nothing is left"
    );
}

#[test]
fn a_queue_full_of_bad_buffers_costs_one_frame_and_no_more() {
    let mut bench = bench(true);
    (0..16).for_each(|_| assert!(bench.driver.offer_nonsense().get() < 16));
    bench.wire.send(&frame(60, 1)).unwrap();
    assert!(matches!(bench.deliver(), Ok(Burst::Empty)));
    (0..16).for_each(|_| assert!(matches!(bench.driver.next_used(), Some((_, 0)))));
}
