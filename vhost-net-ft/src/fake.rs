//! For unit tests only: a driver with one queue in its own memory, and a tap that is one end of a socket pair.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use lockstep_protocol::ids::Head;
use vhost_user_backend::VringT;
use vm_memory::{Address, ByteValued, Bytes, GuestAddress, GuestMemoryAtomic};

use crate::queue::{Memory, PlainQueue, Ring};
use crate::tap::Tap;

pub(crate) const SIZE: u16 = 16;
pub(crate) const WRITE: u16 = 2;
const NEXT: u16 = 1;
const INDIRECT: u16 = 4;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
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
    available_ring: u64,
    available: u16,
    seen: u16,
}

impl Driver {
    pub(crate) fn new() -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let ring = Ring::new(GuestMemoryAtomic::new(memory.clone()), SIZE).unwrap();
        ring.set_queue_size(SIZE);
        ring.set_queue_info(DESCRIPTORS, AVAILABLE, USED).unwrap();
        ring.set_queue_ready(true);
        ring.set_enabled(true);
        Self {
            memory,
            ring,
            next_descriptor: 0,
            available_ring: AVAILABLE,
            available: 0,
            seen: 0,
        }
    }

    fn write<T: ByteValued>(&self, value: T, at: u64) {
        self.memory.write_obj(value, GuestAddress(at)).unwrap();
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
            let rest =
                u64::from(length) | u64::from(flags | more) << 32 | u64::from(self.next_descriptor) << 48;
            self.write([address.raw_value(), rest], DESCRIPTORS + u64::from(at) * 16);
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
        self.write(
            head,
            self.available_ring + 4 + u64::from(self.available % SIZE) * 2,
        );
        self.available = self.available.wrapping_add(1);
        self.claim_available(self.available);
    }

    /// Flags and index of the available ring lie inside memory from now on, and not one entry.
    pub(crate) fn move_available_ring_to_the_end_of_memory(&mut self) {
        self.available_ring = MEMORY as u64 - 4;
        self.ring
            .set_queue_info(DESCRIPTORS, self.available_ring, USED)
            .unwrap();
    }

    /// Sets the available index, whatever it is.
    pub(crate) fn claim_available(&self, index: u16) {
        self.write(index, self.available_ring + 2);
    }

    /// The next completion that the driver has not seen.
    pub(crate) fn next_used(&mut self) -> Option<(Head, u32)> {
        let used: u16 = self.memory.read_obj(GuestAddress(USED + 2)).unwrap();
        if used == self.seen {
            return None;
        }
        let place = USED + 4 + u64::from(self.seen % SIZE) * 8;
        let [head, length]: [u32; 2] = self.memory.read_obj(GuestAddress(place)).unwrap();
        self.seen = self.seen.wrapping_add(1);
        Some((Head::new(u16::try_from(head).unwrap()), length))
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
