//! What a ring does with a guest that follows the rules, and with one that does not.

use super::*;
use proptest::prelude::*;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn memory() -> Arc<GuestRam> {
    Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap())
}

/// A ring of 8 with these writable buffers available, each a chain of its own.
fn ring_with(memory: &GuestRam, lengths: &[u32]) -> Ring {
    let mock = MockSplitQueue::new(memory, 8);
    let chains: Vec<_> = lengths
        .iter()
        .zip(1_u64..)
        .map(|(len, nth)| RawDescriptor::from(Descriptor::new(0x8000 + nth * 0x100, *len, WRITE, 0)))
        .collect();
    if !chains.is_empty() {
        mock.build_multiple_desc_chains(&chains).unwrap();
    }
    let mut ring = Ring::default();
    *ring.queue_mut() = mock.create_queue().unwrap();
    ring
}

fn used_idx(memory: &GuestRam, ring: &Ring) -> u16 {
    memory
        .read_obj(GuestAddress(ring.queue().used_ring() + 2))
        .unwrap()
}

#[test]
fn a_kick_takes_every_available_chain_once() {
    let memory = memory();
    let mut ring = ring_with(&memory, &[16, 16, 16]);
    assert_eq!(ring.take_kicked(&memory).len(), 3);
    assert_eq!(ring.take_kicked(&memory).len(), 0);
    assert_eq!(ring.inflight_len(), 3);
}

#[test]
fn nothing_is_kept_of_a_chain_that_is_longer_than_a_driver_may_make_one() {
    const LONG: u16 = QUEUE_SIZE_MAX + 1;
    let memory = memory();
    let mock = MockSplitQueue::new(&*memory, 8);
    // An indirect table in which each descriptor leads to the next; the device may write them all.
    let table = 0x4000;
    for index in 0..LONG {
        let next = if index + 1 < LONG { NEXT } else { 0 };
        let one = RawDescriptor::from(Descriptor::new(0x8000, 16, WRITE | next, index + 1));
        memory
            .write_obj(one, GuestAddress(table + 16 * u64::from(index)))
            .unwrap();
    }
    let head = RawDescriptor::from(Descriptor::new(table, 16 * u32::from(LONG), INDIRECT, 0));
    mock.build_multiple_desc_chains(&[head]).unwrap();
    let mut ring = Ring::default();
    *ring.queue_mut() = mock.create_queue().unwrap();

    assert_eq!(ring.look_ahead(&memory).next(), Some(0));
    let heads = ring.take_kicked(&memory);
    assert_eq!(heads.len(), 1);
    assert!(ring.inflight.iter().all(|chain| chain.writable.is_empty()));
    assert!(ring.complete(&memory, heads[0], b"nowhere"));
}

#[test]
fn a_completion_writes_what_fits_and_moves_the_used_ring() {
    let memory = memory();
    let mut ring = ring_with(&memory, &[4]);
    let heads = ring.take_kicked(&memory);
    assert!(ring.complete(&memory, heads[0], b"longer than four"));
    assert_eq!(used_idx(&memory, &ring), 1);
    let mut written = [0; 6];
    memory.read_slice(&mut written, GuestAddress(0x8100)).unwrap();
    assert_eq!(&written, b"long\0\0");
}

#[test]
fn a_chain_is_completed_once() {
    let memory = memory();
    let mut ring = ring_with(&memory, &[4]);
    let heads = ring.take_kicked(&memory);
    assert!(ring.complete(&memory, heads[0], b""));
    assert!(!ring.complete(&memory, heads[0], b""));
    assert_eq!(used_idx(&memory, &ring), 1);
}

#[test]
fn more_chains_than_are_in_flight_cannot_be_returned() {
    let memory = memory();
    let mut ring = ring_with(&memory, &[4, 4]);
    ring.take_kicked(&memory);
    assert!(!ring.complete_oldest(&memory, 3));
    assert!(ring.complete_oldest(&memory, 2));
    assert_eq!(ring.inflight_len(), 0);
}

#[test]
fn a_frame_without_a_buffer_is_not_taken() {
    let memory = memory();
    let mut ring = ring_with(&memory, &[]);
    assert!(ring.look_ahead(&memory).next().is_none());
    assert!(!ring.receive(&memory, b"frame", false));
}

#[test]
fn a_frame_larger_than_a_buffer_is_spread_over_several_and_says_so() {
    let memory = memory();
    let mut ring = ring_with(&memory, &[16, 16, 16]);
    assert!(ring.look_ahead(&memory).eq([16, 16, 16]));
    assert!(ring.receive(&memory, &[7; 20], true));
    assert_eq!(used_idx(&memory, &ring), 2);
    assert_eq!(memory.read_obj::<u16>(GuestAddress(0x8100 + 10)).unwrap(), 2);
    assert_eq!(memory.read_obj::<u8>(GuestAddress(0x8200 + 3)).unwrap(), 7);
    assert!(ring.look_ahead(&memory).eq([16]));
}

#[test]
fn a_frame_that_does_not_fit_leaves_the_buffers_to_the_next() {
    let memory = memory();
    let mut ring = ring_with(&memory, &[16, 16]);
    assert!(!ring.receive(&memory, &[7; 20], false));
    assert!(!ring.receive(&memory, &[7; 40], true));
    assert_eq!(used_idx(&memory, &ring), 0);
    assert!(ring.receive(&memory, &[7; 14], false));
}

#[test]
fn a_used_ring_outside_memory_breaks_the_queue_and_nothing_else() {
    let memory = memory();
    let mut ring = ring_with(&memory, &[4]);
    let heads = ring.take_kicked(&memory);
    ring.queue_mut().set_used_ring_address(Some(0xffff_f000), None);
    assert!(ring.complete(&memory, heads[0], b"x"));
    assert!(ring.is_broken());
    assert!(ring.take_kicked(&memory).is_empty());
}

proptest! {
    #[test]
    fn whatever_a_guest_writes_into_its_rings_nothing_panics_or_grows(
        garbage in proptest::collection::vec(any::<u8>(), 0x1000),
        frame in proptest::collection::vec(any::<u8>(), 0..3000),
        rounds in 1..20_usize,
    ) {
        let memory = memory();
        let mut ring = ring_with(&memory, &[64, 64]);
        let (desc, avail) = (ring.queue().desc_table(), ring.queue().avail_ring());
        memory.write_slice(&garbage[..0x80], GuestAddress(desc)).unwrap();
        memory.write_slice(&garbage[0x80..0x80 + 20], GuestAddress(avail)).unwrap();
        prop_assert!(memory.last_addr().0 > avail);
        for _ in 0..rounds {
            for head in ring.take_kicked(&memory) {
                ring.complete(&memory, head, &frame);
            }
            ring.receive(&memory, &frame, true);
            let waiting = ring.look_ahead(&memory).take(2 * usize::from(QUEUE_SIZE_MAX)).count();
            prop_assert!(waiting <= usize::from(QUEUE_SIZE_MAX));
            prop_assert!(ring.inflight_len() <= usize::from(QUEUE_SIZE_MAX));
        }
    }
}
