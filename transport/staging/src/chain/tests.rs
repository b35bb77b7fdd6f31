//! Chains as honest and hostile drivers write them.

use proptest::collection::vec;
use proptest::prelude::*;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::mock::DescriptorTable;
use vm_memory::GuestMemoryMmap;

use super::*;

const SIZE: u16 = 16;
const MEMORY: usize = 0x10_0000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const TABLE: Table = Table {
    start: GuestAddress(0),
    size: SIZE,
};

fn memory(descriptors: &[(u64, u32, u16, u16)]) -> GuestMemoryMmap {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    store(&memory, GuestAddress(0), descriptors);
    memory
}

fn store(memory: &GuestMemoryMmap, at: GuestAddress, descriptors: &[(u64, u32, u16, u16)]) {
    let table = DescriptorTable::new(memory, at, SIZE);
    for (index, (address, length, flags, next)) in descriptors.iter().enumerate() {
        let descriptor = Descriptor::new(*address, *length, *flags, *next);
        table
            .store(u16::try_from(index).unwrap(), RawDescriptor::from(descriptor))
            .unwrap();
    }
}

fn read(memory: &GuestMemoryMmap) -> Result<Chain, BadChain> {
    Chain::read(memory, TABLE, Head::new(0))
}

fn segment(start: u64, length: u32) -> Segment {
    Segment {
        start: GuestAddress(start),
        length,
    }
}

#[test]
fn readable_parts_come_before_writable_ones() {
    let memory = memory(&[
        (0x1000, 16, NEXT, 2),
        (0, 0, 0, 0),
        (0x2000, 512, NEXT | WRITE, 1),
        (0, 0, 0, 0),
    ]);
    store(&memory, GuestAddress(16), &[(0x3000, 1, WRITE, 0)]);
    let chain = read(&memory).unwrap();
    assert_eq!(chain.readable, [segment(0x1000, 16)]);
    assert_eq!(chain.writable, [segment(0x2000, 512), segment(0x3000, 1)]);
}

#[test]
fn an_indirect_table_is_followed_once() {
    let memory = memory(&[(0x4000, 32, INDIRECT, 0)]);
    store(
        &memory,
        GuestAddress(0x4000),
        &[(0x1000, 16, NEXT, 1), (0x2000, 1, WRITE, 0)],
    );
    let chain = read(&memory).unwrap();
    assert_eq!(
        (chain.readable, chain.writable),
        (vec![segment(0x1000, 16)], vec![segment(0x2000, 1)])
    );

    store(&memory, GuestAddress(0x4000), &[(0x5000, 16, INDIRECT, 0)]);
    assert_eq!(read(&memory), Err(BadChain::BadIndirect));
}

#[test]
fn a_loop_ends_when_it_is_longer_than_its_table() {
    let memory = memory(&[(0x1000, 16, NEXT, 1), (0x1000, 16, NEXT, 0)]);
    assert_eq!(read(&memory), Err(BadChain::TooLong));
}

#[test]
fn a_head_or_a_next_beyond_the_table_leads_nowhere() {
    let memory = memory(&[(0x1000, 16, NEXT, SIZE)]);
    assert_eq!(read(&memory), Err(BadChain::NoDescriptor));
    assert_eq!(
        Chain::read(&memory, TABLE, Head::new(SIZE)),
        Err(BadChain::NoDescriptor)
    );
}

#[test]
fn a_segment_outside_memory_is_refused() {
    let end = MEMORY as u64;
    assert_eq!(read(&memory(&[(end - 8, 9, 0, 0)])), Err(BadChain::NoMemory));
    assert_eq!(
        read(&memory(&[(u64::MAX - 8, 16, 0, 0)])),
        Err(BadChain::NoMemory)
    );
}

#[test]
fn a_readable_part_behind_a_writable_one_is_refused() {
    let memory = memory(&[(0x1000, 16, NEXT | WRITE, 1), (0x1000, 16, 0, 0)]);
    assert_eq!(read(&memory), Err(BadChain::OutOfOrder));
}

proptest! {
    #[test]
    fn whatever_a_driver_writes_every_segment_lies_in_memory(
        descriptors in vec((0..2 * MEMORY as u64, 0..4096_u32, 0..8_u16, 0..20_u16), 16),
        head in any::<u16>(),
    ) {
        let memory = memory(&descriptors);
        if let Ok(chain) = Chain::read(&memory, TABLE, Head::new(head % 20)) {
            let parts = chain.readable.iter().chain(&chain.writable);
            prop_assert!(parts.clone().count() <= CHAIN_DESCRIPTORS_MAX);
            for part in parts {
                prop_assert!(part.start.raw_value() + u64::from(part.length) <= MEMORY as u64);
            }
        }
    }
}
