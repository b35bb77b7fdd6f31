//! For unit tests only: a driver with one queue in its own memory, and a tap that is one end of a socket pair.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use lockstep_protocol::ids::Head;
use vhost_user_backend::VringT;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryAtomic};

use crate::queue::{Memory, PlainQueue, Ring};
use crate::tap::Tap;

pub(crate) const SIZE: u16 = 16;
pub(crate) const WRITE: u16 = 2;
const NEXT: u16 = 1;
const INDIRECT: u16 = 4;
/// Where buffers lie, one every 64 KiB.
const BUFFERS: u64 = 0x10_0000;
const BUFFER: u64 = 0x1_0000;
const MEMORY: usize = 0x40_0000;

/// A buffer by number.
pub(crate) fn buffer(number: u16) -> GuestAddress {
    GuestAddress(BUFFERS + u64::from(number) * BUFFER)
}

pub(crate) struct Driver {
    pub(crate) memory: Memory,
    pub(crate) ring: Ring,
    next_descriptor: u16,
    available: u16,
    seen: u16,
}

impl Driver {
    pub(crate) fn new() -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let queue = MockSplitQueue::new(&memory, SIZE);
        let addresses =
            [queue.desc_table_addr(), queue.avail_addr(), queue.used_addr()].map(|at| at.raw_value());
        let ring = Ring::new(GuestMemoryAtomic::new(memory.clone()), SIZE).unwrap();
        ring.set_queue_size(SIZE);
        ring.set_queue_info(addresses[0], addresses[1], addresses[2])
            .unwrap();
        ring.set_queue_ready(true);
        ring.set_enabled(true);
        Self {
            memory,
            ring,
            next_descriptor: 0,
            available: 0,
            seen: 0,
        }
    }

    fn mock(&self) -> MockSplitQueue<'_, Memory> {
        MockSplitQueue::create(&self.memory, GuestAddress(0), SIZE)
    }

    pub(crate) fn lock(&self) -> PlainQueue<'_> {
        PlainQueue::lock(&self.ring, &self.memory).unwrap()
    }

    /// Makes a chain of these (address, length, flags) available.
    pub(crate) fn offer(&mut self, parts: &[(GuestAddress, usize, u16)]) -> Head {
        let head = self.next_descriptor;
        for (place, (address, length, flags)) in parts.iter().enumerate() {
            let more = if place + 1 < parts.len() { NEXT } else { 0 };
            let at = self.next_descriptor;
            self.next_descriptor = (at + 1) % SIZE;
            let length = u32::try_from(*length).unwrap();
            let descriptor = Descriptor::new(address.raw_value(), length, flags | more, self.next_descriptor);
            self.mock()
                .desc_table()
                .store(at, RawDescriptor::from(descriptor))
                .unwrap();
        }
        self.announce(head);
        Head::new(head)
    }

    /// Makes a chain available that needs a table inside a table.
    pub(crate) fn offer_nonsense(&mut self) -> Head {
        self.offer(&[(buffer(0), 7, INDIRECT)])
    }

    /// Makes a head available, whatever it is.
    pub(crate) fn announce(&mut self, head: u16) {
        let slot = usize::from(self.available % SIZE);
        self.mock().avail().ring().ref_at(slot).unwrap().store(head);
        self.available = self.available.wrapping_add(1);
        self.claim_available(self.available);
    }

    /// Sets the available index, whatever it is.
    pub(crate) fn claim_available(&self, index: u16) {
        self.mock().avail().idx().store(index);
    }

    /// The next completion that the driver has not seen.
    pub(crate) fn next_used(&mut self) -> Option<(Head, u32)> {
        let mock = self.mock();
        if mock.used().idx().load() == self.seen {
            return None;
        }
        let element = mock
            .used()
            .ring()
            .ref_at(usize::from(self.seen % SIZE))
            .unwrap()
            .load();
        self.seen = self.seen.wrapping_add(1);
        Some((Head::new(u16::try_from(element.id()).unwrap()), element.len()))
    }

    pub(crate) fn read(&self, at: GuestAddress, length: u32) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        self.memory.read_slice(&mut bytes, at).unwrap();
        bytes
    }
}

/// A tap, and the wire behind it: each message is a frame with its header.
pub(crate) fn tap() -> (Tap, UnixDatagram) {
    let (tap, wire) = UnixDatagram::pair().unwrap();
    tap.set_nonblocking(true).unwrap();
    wire.set_nonblocking(true).unwrap();
    (Tap::from_file(File::from(OwnedFd::from(tap))), wire)
}

/// A frame with its header, of this many bytes, the last of which counts up from `seed`.
pub(crate) fn frame(length: usize, seed: u8) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend((12..length).map(|place| (place as u8).wrapping_add(seed)));
    frame
}
