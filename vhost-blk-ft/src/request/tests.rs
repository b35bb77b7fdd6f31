//! Requests as guests write them, honest and otherwise.

use lockstep_protocol::Head;
use lockstep_staging::chain::Table;
use lockstep_staging::limits::CHAIN_DESCRIPTORS_MAX;
use proptest::prelude::*;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;

const MEMORY: usize = 0x10_0000;
const QUEUE: u16 = 16;
const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
const HEADER: u64 = 0x8000;
const DATA: u64 = 0x9000;
const STATUS: u64 = 0xf000;

const BOUNDS: Bounds = Bounds {
    disk_bytes: 64 * 512,
    read_only: false,
    transfer_max: 16 * 512,
};

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap()
}

fn table(queue: &MockSplitQueue<GuestMemoryMmap>) -> Table {
    Table {
        start: queue.desc_table_addr(),
        size: QUEUE,
    }
}

/// Stores a chain of (address, length, flags) at the beginning of the table, linked in order.
fn parse_with(header: Header, parts: &[(u64, u32, u16)], bounds: &Bounds) -> Result<Request, NoAnswer> {
    let memory = memory();
    memory
        .write_slice(header.as_bytes(), GuestAddress(HEADER))
        .unwrap();
    parse_in(&memory, parts, bounds)
}

fn parse_in(
    memory: &GuestMemoryMmap,
    parts: &[(u64, u32, u16)],
    bounds: &Bounds,
) -> Result<Request, NoAnswer> {
    let queue = MockSplitQueue::new(memory, QUEUE);
    let last = parts.len() - 1;
    for (index, (address, length, flags)) in parts.iter().enumerate() {
        let more = if index < last { NEXT } else { 0 };
        let descriptor = Descriptor::new(*address, *length, flags | more, index as u16 + 1);
        queue
            .desc_table()
            .store(index as u16, RawDescriptor::from(descriptor))
            .unwrap();
    }
    let chain = Chain::read(memory, table(&queue), Head::ZERO)?;
    Request::parse(memory, chain, bounds)
}

fn header(kind: u32, sector: u64) -> Header {
    Header {
        kind,
        priority: 0,
        sector,
    }
}

fn command(header: Header, parts: &[(u64, u32, u16)]) -> Command {
    parse_with(header, parts, &BOUNDS).unwrap().command
}

const OUT_CHAIN: [(u64, u32, u16); 3] = [(HEADER, 16, 0), (DATA, 1024, 0), (STATUS, 1, WRITE)];
const IN_CHAIN: [(u64, u32, u16); 3] = [(HEADER, 16, 0), (DATA, 1024, WRITE), (STATUS, 1, WRITE)];

#[test]
fn a_read_fills_everything_before_the_status_byte() {
    let request = parse_with(header(VIRTIO_BLK_T_IN, 2), &IN_CHAIN, &BOUNDS).unwrap();
    assert_eq!(
        request.command,
        Command::Read(Extent {
            at: 1024,
            bytes: 1024
        })
    );
    assert_eq!(request.reply.length, 1025);
}

#[test]
fn a_status_byte_may_share_its_descriptor_with_the_data() {
    let shared = [(HEADER, 16, 0), (DATA, 513, WRITE)];
    assert_eq!(
        command(header(VIRTIO_BLK_T_IN, 0), &shared),
        Command::Read(Extent { at: 0, bytes: 512 })
    );
}

#[test]
fn a_header_may_share_its_descriptor_with_the_data() {
    let shared = [(HEADER, 16 + 512, 0), (STATUS, 1, WRITE)];
    let data = Segment {
        start: GuestAddress(HEADER + 16),
        length: 512,
    };
    let written = Command::Write(Extent { at: 512, bytes: 512 }, vec![data]);
    assert_eq!(command(header(VIRTIO_BLK_T_OUT, 1), &shared), written);
}

#[test]
fn a_header_may_be_cut_in_pieces() {
    let pieces = [
        (HEADER, 5, 0),
        (HEADER + 5, 11, 0),
        (DATA, 512, 0),
        (STATUS, 1, WRITE),
    ];
    let data = Segment {
        start: GuestAddress(DATA),
        length: 512,
    };
    let written = Command::Write(Extent { at: 0, bytes: 512 }, vec![data]);
    assert_eq!(command(header(VIRTIO_BLK_T_OUT, 0), &pieces), written);
}

#[test]
fn a_transfer_beyond_the_disk_is_an_io_error() {
    let refused = Command::Refuse(Status::IoError);
    assert_eq!(command(header(VIRTIO_BLK_T_OUT, 63), &OUT_CHAIN), refused);
    assert_eq!(command(header(VIRTIO_BLK_T_IN, u64::MAX), &IN_CHAIN), refused);
    assert_eq!(
        command(header(VIRTIO_BLK_T_IN, u64::MAX / 512), &IN_CHAIN),
        refused
    );
}

#[test]
fn a_transfer_of_no_sectors_or_of_half_a_sector_is_an_io_error() {
    let of = |length| [(HEADER, 16, 0), (DATA, length, 0), (STATUS, 1, WRITE)];
    let refused = Command::Refuse(Status::IoError);
    assert_eq!(command(header(VIRTIO_BLK_T_OUT, 0), &of(0)), refused);
    assert_eq!(command(header(VIRTIO_BLK_T_OUT, 0), &of(100)), refused);
    assert_eq!(
        command(header(VIRTIO_BLK_T_OUT, 0), &[(HEADER, 8, 0), (STATUS, 1, WRITE)]),
        refused
    );
}

#[test]
fn a_write_that_is_too_long_to_hold_is_an_io_error_and_such_a_read_goes_back_empty() {
    let of = |flags| [(HEADER, 16, 0), (DATA, 17 * 512, flags), (STATUS, 1, WRITE)];
    assert_eq!(
        command(header(VIRTIO_BLK_T_OUT, 0), &of(0)),
        Command::Refuse(Status::IoError)
    );
    assert_eq!(
        parse_with(header(VIRTIO_BLK_T_IN, 0), &of(WRITE), &BOUNDS),
        Err(NoAnswer::TooLong)
    );
}

#[test]
fn a_read_only_disk_refuses_whatever_writes_and_flushes_gladly() {
    let bounds = Bounds {
        read_only: true,
        ..BOUNDS
    };
    let told = |kind| parse_with(header(kind, 0), &OUT_CHAIN, &bounds).unwrap().command;
    assert_eq!(told(VIRTIO_BLK_T_OUT), Command::Refuse(Status::IoError));
    assert_eq!(told(VIRTIO_BLK_T_DISCARD), Command::Refuse(Status::IoError));
    assert_eq!(told(VIRTIO_BLK_T_FLUSH), Command::Flush);
}

#[test]
fn a_request_that_nobody_knows_is_unsupported() {
    assert_eq!(
        command(header(99, 0), &OUT_CHAIN),
        Command::Refuse(Status::Unsupported)
    );
}

#[test]
fn a_name_needs_room_for_all_of_it() {
    let of = |length| [(HEADER, 16, 0), (DATA, length, WRITE), (STATUS, 1, WRITE)];
    assert_eq!(command(header(VIRTIO_BLK_T_GET_ID, 0), &of(20)), Command::GetId);
    assert_eq!(
        command(header(VIRTIO_BLK_T_GET_ID, 0), &of(19)),
        Command::Refuse(Status::IoError)
    );
}

fn with_ranges(kind: u32, ranges: &[RangeBytes]) -> Command {
    let memory = memory();
    memory
        .write_slice(header(kind, 0).as_bytes(), GuestAddress(HEADER))
        .unwrap();
    memory.write_slice(ranges.as_bytes(), GuestAddress(DATA)).unwrap();
    let length = size_of_val(ranges) as u32;
    let parts = [(HEADER, 16, 0), (DATA, length, 0), (STATUS, 1, WRITE)];
    parse_in(&memory, &parts, &BOUNDS).unwrap().command
}

fn range(sector: u64, sectors: u32, flags: u32) -> RangeBytes {
    RangeBytes {
        sector,
        sectors,
        flags,
    }
}

#[test]
fn a_discard_names_its_ranges_and_a_flag_in_it_is_unsupported() {
    let extents = vec![Extent { at: 512, bytes: 1024 }, Extent { at: 0, bytes: 512 }];
    assert_eq!(
        with_ranges(VIRTIO_BLK_T_DISCARD, &[range(1, 2, 0), range(0, 1, 0)]),
        Command::Discard(extents)
    );
    let refused = Command::Refuse(Status::Unsupported);
    assert_eq!(with_ranges(VIRTIO_BLK_T_DISCARD, &[range(1, 2, 1)]), refused);
}

#[test]
fn a_discard_on_a_mirrored_disk_frees_blocks_by_writing_zeros() {
    let extents = vec![Extent { at: 512, bytes: 1024 }, Extent { at: 0, bytes: 512 }];
    let discard = with_ranges(VIRTIO_BLK_T_DISCARD, &[range(1, 2, 0), range(0, 1, 0)]);
    assert_eq!(discard.mirrored(), Command::WriteZeroes { extents, unmap: true });
}

#[test]
fn a_discard_on_a_mirrored_disk_is_no_longer_than_zeros_may_be() {
    let discard = |sectors: u64| {
        let bytes = sectors * SECTOR;
        Command::Discard(vec![Extent { at: 0, bytes: 512 }, Extent { at: 0, bytes }]).mirrored()
    };
    let longest = discard(u64::from(ZERO_SECTORS_MAX));
    assert!(matches!(longest, Command::WriteZeroes { .. }), "{longest:?}");
    let longer = discard(u64::from(ZERO_SECTORS_MAX) + 1);
    assert_eq!(longer, Command::Refuse(Status::IoError));
}

#[test]
fn zeros_may_free_blocks_only_when_every_range_says_so() {
    let unmap = |ranges: &[RangeBytes]| match with_ranges(VIRTIO_BLK_T_WRITE_ZEROES, ranges) {
        Command::WriteZeroes { unmap, .. } => unmap,
        other => panic!("{other:?}"),
    };
    assert!(unmap(&[range(0, 1, 1), range(1, 1, 1)]));
    assert!(!unmap(&[range(0, 1, 1), range(1, 1, 0)]));
}

#[test]
fn ranges_that_are_too_many_too_long_or_off_the_disk_are_io_errors() {
    let refused = Command::Refuse(Status::IoError);
    assert_eq!(with_ranges(VIRTIO_BLK_T_DISCARD, &[range(0, 1, 0); 17]), refused);
    assert_eq!(with_ranges(VIRTIO_BLK_T_DISCARD, &[range(63, 2, 0)]), refused);
    assert_eq!(
        with_ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[range(0, u32::MAX, 0)]),
        refused
    );
}

#[test]
fn a_chain_without_a_place_for_the_status_cannot_be_answered() {
    let chain = [(HEADER, 16, 0), (DATA, 512, 0)];
    assert_eq!(
        parse_with(header(VIRTIO_BLK_T_OUT, 0), &chain, &BOUNDS),
        Err(NoAnswer::NoStatus)
    );
    let empty = [(HEADER, 16, 0), (STATUS, 0, WRITE)];
    assert_eq!(
        parse_with(header(VIRTIO_BLK_T_OUT, 0), &empty, &BOUNDS),
        Err(NoAnswer::NoStatus)
    );
}

#[test]
fn a_chain_of_wrong_form_cannot_be_answered_and_says_what_is_wrong() {
    let told =
        |parts: &[(u64, u32, u16)]| parse_with(header(VIRTIO_BLK_T_OUT, 0), parts, &BOUNDS).unwrap_err();
    let late = [(HEADER, 16, 0), (STATUS, 1, WRITE), (DATA, 512, 0)];
    assert_eq!(told(&late), NoAnswer::Chain(BadChain::OutOfOrder));
    let outside = [(HEADER, 16, 0), (MEMORY as u64 - 1, 2, 0), (STATUS, 1, WRITE)];
    assert_eq!(told(&outside), NoAnswer::Chain(BadChain::NoMemory));
    let wrapping = [(HEADER, 16, 0), (u64::MAX - 1, 512, 0), (STATUS, 1, WRITE)];
    assert_eq!(told(&wrapping), NoAnswer::Chain(BadChain::NoMemory));
}

#[test]
fn a_link_out_of_the_table_leads_nowhere() {
    let memory = memory();
    let queue = MockSplitQueue::new(&memory, QUEUE);
    let dangling = Descriptor::new(HEADER, 16, NEXT, QUEUE);
    queue
        .desc_table()
        .store(0, RawDescriptor::from(dangling))
        .unwrap();
    assert_eq!(
        Chain::read(&memory, table(&queue), Head::ZERO),
        Err(BadChain::NoDescriptor)
    );
}

#[test]
fn a_chain_that_bites_its_tail_is_too_long() {
    let memory = memory();
    let queue = MockSplitQueue::new(&memory, QUEUE);
    let looping = Descriptor::new(HEADER, 16, NEXT, 0);
    queue.desc_table().store(0, RawDescriptor::from(looping)).unwrap();
    assert_eq!(
        Chain::read(&memory, table(&queue), Head::ZERO),
        Err(BadChain::TooLong)
    );
}

#[test]
fn an_indirect_table_is_followed_once_and_not_into_another() {
    let memory = memory();
    let queue = MockSplitQueue::new(&memory, QUEUE);
    let way = Descriptor::new(0x4000, 32, INDIRECT, 0);
    queue.desc_table().store(0, RawDescriptor::from(way)).unwrap();
    let inner = |index: u64, descriptor| {
        memory
            .write_obj::<Descriptor>(descriptor, GuestAddress(0x4000 + 16 * index))
            .unwrap();
        Chain::read(&memory, table(&queue), Head::ZERO)
    };
    inner(1, Descriptor::new(STATUS, 1, WRITE, 0)).unwrap();
    let chain = inner(0, Descriptor::new(HEADER, 16, NEXT, 1)).unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (1, 1));
    assert_eq!(
        inner(0, Descriptor::new(0x5000, 32, INDIRECT, 0)),
        Err(BadChain::BadIndirect)
    );
    assert_eq!(
        inner(0, Descriptor::new(HEADER, 16, NEXT, 2)),
        Err(BadChain::NoDescriptor)
    );
}

/// A descriptor that is near to being right, so that walks get far.
fn any_descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address = prop_oneof![8 => 0..MEMORY as u64, 1 => any::<u64>()];
    let length = prop_oneof![4 => 0..2048_u32, 2 => Just(16_u32), 2 => Just(512_u32), 1 => any::<u32>()];
    let flags = prop_oneof![9 => 0..4_u16, 1 => any::<u16>()];
    let next = prop_oneof![9 => 0..QUEUE, 1 => any::<u16>()];
    (address, length, flags, next)
}

proptest! {
    #[test]
    fn no_chain_however_wild_makes_a_request_that_breaks_its_bounds(
        descriptors in proptest::collection::vec(any_descriptor(), QUEUE as usize),
        noise in proptest::collection::vec(any::<u8>(), 4096),
        kind in prop_oneof![Just(0), Just(1), Just(4), Just(8), Just(11), Just(13), any::<u32>()],
        sector in prop_oneof![0..80_u64, any::<u64>()],
        head in 0..QUEUE + 2,
    ) {
        let memory = memory();
        memory.write_slice(&noise, GuestAddress(0x4000)).unwrap();
        let queue = MockSplitQueue::new(&memory, QUEUE);
        for (index, (address, length, flags, next)) in descriptors.iter().enumerate() {
            let descriptor = Descriptor::new(*address, *length, *flags, *next);
            queue.desc_table().store(index as u16, RawDescriptor::from(descriptor)).unwrap();
            let _ = memory.write_slice(header(kind, sector).as_bytes(), GuestAddress(*address));
        }
        let Ok(chain) = Chain::read(&memory, table(&queue), Head::new(head)) else { return Ok(()) };
        prop_assert!(chain.readable.len() + chain.writable.len() <= usize::from(QUEUE).max(CHAIN_DESCRIPTORS_MAX));
        let Ok(request) = Request::parse(&memory, chain, &BOUNDS) else { return Ok(()) };
        prop_assert!(request.reply.length >= 1 && request.reply.data_length() <= BOUNDS.transfer_max);
        let extents = match request.command {
            Command::Read(extent) | Command::Write(extent, _) => vec![extent],
            Command::Discard(extents) | Command::WriteZeroes { extents, .. } => extents,
            Command::Flush | Command::GetId | Command::Refuse(_) => vec![],
        };
        prop_assert!(extents.len() <= RANGES_MAX as usize);
        for extent in extents {
            prop_assert!(extent.at + extent.bytes <= BOUNDS.disk_bytes && extent.bytes % SECTOR == 0);
        }
    }
}
