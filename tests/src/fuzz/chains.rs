//! A guest that lies: descriptor chains for network and disk, and any loads and stores to a virtio-mmio window, over
//! memory that holds whatever it likes, and that a device process may write to at any time.

use std::sync::Arc;

use lockstep_protocol::ids::{DeviceId, Head, QueueIndex};
use lockstep_staging::chain::{Chain, Table};
use lockstep_vmm::memory::GuestRam;
use lockstep_vmm::virtio::mmio::{DeviceKind, MmioDeed, MmioDevice};
use vhost_blk_ft::request::{Bounds, Command, Request};
use vhost_net_ft::frame::{copy_frame, is_frame_length};
use vm_memory::bitmap::NewBitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// How much memory the guest has: a few tables and buffers.
const MEMORY: usize = 64 << 10;
/// Its descriptor table lies at the beginning.
const TABLE: u64 = 0;
/// The disk that requests are for.
const DISK: Bounds = Bounds {
    disk_bytes: 1 << 20,
    read_only: false,
    transfer_max: 32 << 10,
};

/// Memory as a device process maps it (`B` is nothing), or as the VMM does.
pub(super) fn memory_of<B: NewBitmap>(bytes: &[u8]) -> GuestMemoryMmap<B> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])
        .expect("there is memory for a guest as small as this");
    let bytes = &bytes[..bytes.len().min(MEMORY)];
    memory
        .write_slice(bytes, GuestAddress(TABLE))
        .expect("it was cut to fit");
    memory
}

/// A table size that a driver can set, and the head of a chain in it.
fn table_and_head(first: u8, head: u8) -> (Table, Head) {
    let table = Table {
        start: GuestAddress(TABLE),
        size: 1 << (first % 9),
    };
    (table, Head::new(u16::from(head)))
}

/// A chain that shall be a frame.
pub(super) fn net_chain(bytes: &[u8]) {
    let [first, head, rest @ ..] = bytes else { return };
    let memory = memory_of::<()>(rest);
    let (table, head) = table_and_head(*first, *head);
    let Ok(chain) = Chain::read(&memory, table, head) else {
        return;
    };
    let mut frame = Vec::new();
    if copy_frame(&memory, &chain, &mut frame).is_ok() {
        assert!(
            is_frame_length(frame.len()),
            "a frame has a length that frames have"
        );
    }
}

/// A chain that shall be a request to a disk.
pub(super) fn blk_chain(bytes: &[u8]) {
    let [first, head, rest @ ..] = bytes else { return };
    let memory = memory_of::<()>(rest);
    let (table, head) = table_and_head(*first, *head);
    let Ok(chain) = Chain::read(&memory, table, head) else {
        return;
    };
    let Ok(Request { command, reply }) = Request::parse(&memory, chain, &DISK) else {
        return;
    };
    assert!(reply.length >= 1 && reply.data_length() <= DISK.transfer_max);
    let extents = match command {
        Command::Read(extent) | Command::Write(extent, _) => vec![extent],
        Command::Discard(extents) | Command::WriteZeroes { extents, .. } => extents,
        Command::Flush | Command::GetId | Command::Refuse(_) => vec![],
    };
    for extent in extents {
        let end = extent.at.checked_add(extent.bytes);
        assert!(
            end.is_some_and(|end| end <= DISK.disk_bytes),
            "a request that was accepted lies on the disk"
        );
    }
}

/// Bytes of one access: what, where, and a value.
const ACCESS: usize = 7;
/// So much of the input is the guest's memory.
const RINGS: usize = 4096;

/// Loads and stores to a device's window, and inputs that enter between them.
pub(super) fn virtio_mmio(bytes: &[u8]) {
    let (rings, accesses) = bytes.split_at(bytes.len().min(RINGS));
    let memory = Arc::new(memory_of(rings));
    let kind = match rings.first() {
        Some(0..128) => DeviceKind::Net,
        _ => DeviceKind::Blk,
    };
    use_device(&mut new_device(kind), &memory, accesses);
}

/// A device as its driver finds it.
pub(super) fn new_device(kind: DeviceKind) -> MmioDevice {
    MmioDevice::new(DeviceId::new(0), kind, 0, vec![7; 24])
}

/// Each access loads, stores, lets something enter, or has somebody else write to the guest's memory.
pub(super) fn use_device(device: &mut MmioDevice, memory: &Arc<GuestRam>, accesses: &[u8]) {
    for access in accesses.chunks_exact(ACCESS) {
        let [what, low, high, value @ ..] = access else {
            return;
        };
        let offset = u64::from(u16::from_le_bytes([*low, *high]));
        match what % 4 {
            0 => device.read(offset, &mut [0; 4]),
            1 => enter(device, memory, value),
            // A device process has the guest's memory too, and so has the guest's other side of a ring.
            3 => memory
                .write_slice(value, GuestAddress(offset & !3))
                .expect("every word that 16 bits name is in memory"),
            _ => {
                if let MmioDeed::Kick(queue) = device.write(offset, value)
                    && let Some(ring) = device.ring_mut(queue)
                {
                    ring.take_kicked(memory);
                }
            }
        }
    }
}

/// What the machine lets enter, as an injected record would.
fn enter(device: &mut MmioDevice, memory: &Arc<GuestRam>, value: &[u8]) {
    let [queue, head, count, what] = value else { return };
    let Some(ring) = device.ring_mut(QueueIndex::new(u16::from(*queue % 3))) else {
        return;
    };
    let in_flight = ring.inflight_len();
    match what % 3 {
        0 => drop(ring.receive(memory, &[0; 96], what & 4 != 0)),
        1 => drop(ring.complete(memory, Head::new(u16::from(*head)), &[0; 8])),
        _ => drop(ring.complete_oldest(memory, u16::from(*count))),
    }
    assert!(
        ring.inflight_len() <= in_flight,
        "what enters gives chains back and takes none"
    );
}
