//! A ring against a model, against hostile memory, and between two threads' indices.

use std::collections::VecDeque;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::Bytes;

use super::*;
use crate::memory::{RingSizes, Which};

const CAPACITY: u64 = 4096;
const TAG: u32 = 7;

fn ring() -> (Arc<SharedMemory>, Producer, Consumer) {
    let sizes = RingSizes {
        completions: CAPACITY,
        frames: CAPACITY,
        orders: CAPACITY,
    };
    let (memory, _file) = SharedMemory::create(sizes).unwrap();
    let memory = Arc::new(memory);
    let place = memory.place(Which::Frames);
    (
        memory.clone(),
        Producer::new(memory.clone(), place),
        Consumer::new(memory, place),
    )
}

fn push(producer: &mut Producer, room: usize, bytes: &[u8]) -> Result<(), ReserveError> {
    let slot = producer.reserve(room)?;
    slot.bytes().write_slice(bytes, 0).unwrap();
    slot.commit(bytes.len(), TAG);
    Ok(())
}

fn pop(consumer: &mut Consumer) -> Result<Option<(u32, Vec<u8>)>, Fault> {
    consumer.pop(|tag, entry| {
        let mut bytes = vec![0; entry.len()];
        entry.copy_to(&mut bytes[..]);
        Ok((tag, bytes))
    })
}

#[derive(Clone, Debug)]
enum Op {
    /// Reserve this much, commit so many permille of it.
    Push(usize, usize),
    /// Reserve and think better of it.
    Abandon(usize),
    Pop,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..=payload_max(CAPACITY) as usize, 0..=1000_usize).prop_map(|(room, part)| Op::Push(room, part)),
        1 => (0..=payload_max(CAPACITY) as usize).prop_map(Op::Abandon),
        3 => Just(Op::Pop),
    ]
}

proptest! {
    #[test]
    fn whatever_is_pushed_comes_out_once_and_in_order(ops in vec(op(), 1..400)) {
        let (_memory, mut producer, mut consumer) = ring();
        let mut model = VecDeque::new();
        for (step, op) in ops.into_iter().enumerate() {
            match op {
                Op::Push(room, part) => {
                    let bytes = vec![step as u8; room * part / 1000];
                    match push(&mut producer, room, &bytes) {
                        Ok(()) => model.push_back(bytes),
                        Err(error) => {
                            prop_assert_eq!(error, ReserveError::Full);
                            prop_assert!(!model.is_empty(), "an empty ring has room for any entry");
                        }
                    }
                }
                Op::Abandon(room) => drop(producer.reserve(room)),
                Op::Pop => {
                    let popped = pop(&mut consumer).unwrap();
                    prop_assert_eq!(popped, model.pop_front().map(|bytes| (TAG, bytes)));
                }
            }
            prop_assert_eq!(consumer.has_entries(), !model.is_empty());
        }
    }

    #[test]
    fn a_hostile_producer_gets_a_fault_and_never_more_than_the_limits(
        produced in prop_oneof![any::<u64>(), 0..3 * CAPACITY, (0..=CAPACITY / 8).prop_map(|n| n * 8)],
        noise in vec(any::<u64>(), CAPACITY as usize / 8),
        small_lengths in any::<bool>(),
    ) {
        let (memory, producer, mut consumer) = ring();
        for (index, value) in noise.iter().enumerate() {
            let value = if small_lengths { value & 0xffff_ffff_0000_03ff } else { *value };
            memory.word(producer.place.data + index * 8).store(value, Ordering::Relaxed);
        }
        memory.word(producer.place.produced).store(produced, Ordering::Release);
        let mut taken = 0;
        while let Ok(Some((_, bytes))) = pop(&mut consumer) {
            prop_assert!(bytes.len() as u64 <= payload_max(CAPACITY));
            taken += HEADER;
            prop_assert!(taken <= CAPACITY, "one snapshot yields no more than one ring of entries");
        }
    }

    #[test]
    fn a_hostile_consumer_gets_a_fault_or_a_full_ring(consumed in any::<u64>(), rooms in vec(0..1000_usize, 1..40)) {
        let (memory, mut producer, _consumer) = ring();
        memory.word(producer.place.consumed).store(consumed, Ordering::Release);
        for room in rooms {
            // Nothing to say about the outcome: it must not panic and must not write outside (the mapping ends there).
            let _ = push(&mut producer, room, &vec![1; room]);
            let _ = producer.may_proceed();
        }
    }
}

#[test]
fn an_entry_of_a_quarter_of_the_ring_fits_whenever_the_ring_is_half_empty() {
    let largest = payload_max(CAPACITY) as usize;
    for offset in (0..CAPACITY as usize).step_by(8) {
        let (memory, mut producer, mut consumer) = ring();
        let place = producer.place;
        producer.produced = offset as u64;
        producer.consumed = offset as u64;
        consumer.produced = offset as u64;
        consumer.consumed = offset as u64;
        memory
            .word(place.produced)
            .store(offset as u64, Ordering::Release);
        memory
            .word(place.consumed)
            .store(offset as u64, Ordering::Release);
        push(&mut producer, largest, &vec![1; largest]).unwrap();
        push(&mut producer, largest, &vec![2; largest])
            .unwrap_or_else(|error| panic!("at {offset}: {error:?}"));
    }
}

#[test]
fn an_entry_longer_than_a_quarter_of_the_ring_is_too_long_even_when_empty() {
    let (_memory, mut producer, _consumer) = ring();
    let room = payload_max(CAPACITY) as usize + 1;
    assert_eq!(producer.reserve(room).err(), Some(ReserveError::TooLong));
}

#[test]
fn two_paddings_in_a_row_are_a_fault() {
    let (memory, producer, mut consumer) = ring();
    let padding = header((CAPACITY - HEADER) as u32, TAG_PADDING);
    memory.word(producer.place.data).store(padding, Ordering::Relaxed);
    memory
        .word(producer.place.produced)
        .store(CAPACITY, Ordering::Release);
    assert!(matches!(pop(&mut consumer), Err(Fault::Length(_))));
}

#[test]
fn an_index_that_goes_back_is_a_fault() {
    let (memory, mut producer, mut consumer) = ring();
    push(&mut producer, 8, &[1; 8]).unwrap();
    pop(&mut consumer).unwrap();
    memory.word(producer.place.produced).store(8, Ordering::Release);
    assert_eq!(pop(&mut consumer), Err(Fault::Index { from: 16, to: 8 }));
}

#[test]
fn a_full_ring_says_so_and_may_proceed_once_half_is_free() {
    let (_memory, mut producer, mut consumer) = ring();
    let entry = [9; 504];
    (0..8).for_each(|_| push(&mut producer, 504, &entry).unwrap());
    assert_eq!(push(&mut producer, 504, &entry), Err(ReserveError::Full));
    assert!(!producer.may_proceed());
    (0..3).for_each(|_| assert!(pop(&mut consumer).unwrap().is_some()));
    assert!(!consumer.unblocks_producer() && !producer.may_proceed());
    pop(&mut consumer).unwrap();
    assert!(consumer.unblocks_producer() && producer.may_proceed());
    push(&mut producer, 504, &entry).unwrap();
    assert!(!consumer.unblocks_producer() && !producer.may_proceed());
}
