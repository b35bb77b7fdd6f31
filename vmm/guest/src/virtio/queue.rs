//! A split virtqueue, driver side. The drivers hand buffers in and get the same buffers back: a buffer belongs to the
//! queue for as long as the device may touch it, so nobody can read it half-written or free it early. Unsafe code lives
//! here: the ring is memory that the device shares.

use alloc::alloc::{alloc_zeroed, handle_alloc_error};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::mem::ManuallyDrop;
use core::ops::Range;
use core::sync::atomic::{Ordering, fence};

const DESCRIPTOR_BYTES: usize = 16;
const DESCRIPTOR_NEXT: u16 = 1;
const DESCRIPTOR_WRITE: u16 = 2;
const NO_NOTIFY: u16 = 1;
const PAGE: usize = 4096;
/// A request is at most a header, data and a status byte.
pub const MAX_PIECES: usize = 3;

/// Who fills a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filler {
    /// The driver did; the device reads it.
    Driver,
    /// The device will, over the buffer's whole length.
    Device,
}

/// Bytes whose memory stays where it is while the device has them.
#[derive(Debug)]
enum Bytes {
    Own(Vec<u8>),
    /// Part of what several chains read from. Nobody can write there while it is shared.
    Shared(Rc<Vec<u8>>, Range<usize>),
}

/// One buffer of a chain.
#[derive(Debug)]
pub struct Piece {
    bytes: Bytes,
    filler: Filler,
}

impl Piece {
    /// Bytes for the device to read.
    pub fn from_driver(bytes: Vec<u8>) -> Self {
        Piece {
            bytes: Bytes::Own(bytes),
            filler: Filler::Driver,
        }
    }

    /// A part of bytes for the device to read. The queue holds a share of the whole for as long.
    pub fn shared(whole: &Rc<Vec<u8>>, part: Range<usize>) -> Self {
        assert!(part.start <= part.end && part.end <= whole.len());
        Piece {
            bytes: Bytes::Shared(Rc::clone(whole), part),
            filler: Filler::Driver,
        }
    }

    /// Room for the device to write.
    pub fn for_device(bytes: Vec<u8>) -> Self {
        Piece {
            bytes: Bytes::Own(bytes),
            filler: Filler::Device,
        }
    }
}

/// A chain that the device has finished with.
#[derive(Debug)]
pub struct Finished {
    /// What [`Queue::add`] answered when the chain went in.
    pub head: u16,
    /// How many bytes the device says it wrote; distrust it.
    pub written: usize,
    /// The buffers, in the order they were given; none in the place of a shared part.
    pub buffers: [Option<Vec<u8>>; MAX_PIECES],
}

/// Addresses of a queue's three parts, for the device.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// The descriptor table.
    pub descriptors: u64,
    /// The ring that the driver writes.
    pub available: u64,
    /// The ring that the device writes.
    pub used: u64,
}

/// A buffer in the device's hands.
#[derive(Debug)]
struct Lent {
    descriptor: u16,
    memory: Memory,
}

/// Whose memory it is. A queue that is dropped never frees it: the device may still use it.
#[derive(Debug)]
enum Memory {
    /// A vector, taken apart so that no Rust value claims its memory meanwhile.
    Own {
        start: *mut u8,
        len: usize,
        capacity: usize,
    },
    /// A share of bytes that the device only reads.
    Shared(ManuallyDrop<Rc<Vec<u8>>>),
}

type Chain = [Option<Lent>; MAX_PIECES];

/// A queue.
#[derive(Debug)]
pub struct Queue {
    size: u16,
    descriptors: *mut u8,
    available: *mut u8,
    used: *mut u8,
    free: Vec<u16>,
    chains: Vec<Option<Chain>>,
    next_available: u16,
    next_used: u16,
    unannounced: bool,
}

impl Queue {
    /// An empty queue; its ring memory lives for ever, as the device may.
    pub fn new(size: u16) -> Self {
        assert!(size.is_power_of_two() && size <= 1024);
        let entries = usize::from(size);
        let available_at = entries * DESCRIPTOR_BYTES;
        let used_at = (available_at + 6 + 2 * entries).next_multiple_of(PAGE);
        let total = used_at + 6 + 8 * entries;
        let layout = Layout::from_size_align(total, PAGE).expect("a few kilobytes are a valid layout");
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        // The device reaches this memory by its address.
        start.expose_provenance();
        Queue {
            size,
            descriptors: start,
            available: start.wrapping_add(available_at),
            used: start.wrapping_add(used_at),
            free: (0..size).rev().collect(),
            chains: (0..size).map(|_| None).collect(),
            next_available: 0,
            next_used: 0,
            unannounced: false,
        }
    }

    /// How many descriptors the queue has.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// How many descriptors are free.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Where the parts lie.
    pub fn places(&self) -> Places {
        Places {
            descriptors: self.descriptors.addr() as u64,
            available: self.available.addr() as u64,
            used: self.used.addr() as u64,
        }
    }

    /// Gives a chain to the device and answers its head; gives the pieces back when there is no room.
    pub fn add<const N: usize>(&mut self, pieces: [Piece; N]) -> Result<u16, [Piece; N]> {
        const { assert!(N > 0 && N <= MAX_PIECES) };
        if self.free.len() < N {
            return Err(pieces);
        }
        let mut indices = [0; MAX_PIECES];
        for index in &mut indices[..N] {
            *index = self.free.pop().expect("the room was checked above");
        }
        let mut chain: Chain = [const { None }; MAX_PIECES];
        for (at, piece) in pieces.into_iter().enumerate() {
            let next = indices[..N].get(at + 1).copied();
            chain[at] = Some(self.lend(indices[at], next, piece));
        }
        let head = indices[0];
        self.chains[usize::from(head)] = Some(chain);
        self.publish(head);
        Ok(head)
    }

    /// Whether the device has finished anything that was not popped yet.
    pub fn has_finished(&self) -> bool {
        self.load_u16(self.used, 2) != self.next_used
    }

    /// The oldest chain that the device has finished with.
    pub fn pop(&mut self) -> Option<Finished> {
        while self.has_finished() {
            fence(Ordering::Acquire);
            let entry = self
                .used
                .wrapping_add(4 + 8 * usize::from(self.next_used % self.size));
            let head = self.load_u32(entry, 0);
            let written = self.load_u32(entry, 4) as usize;
            self.next_used = self.next_used.wrapping_add(1);
            // A head that is not out is the device's mistake; there is nothing to give back for it.
            let Some(chain) = self.chains.get_mut(head as usize).and_then(Option::take) else {
                continue;
            };
            let buffers = chain.map(|lent| lent.and_then(|lent| self.take_back(lent)));
            return Some(Finished {
                head: head as u16,
                written,
                buffers,
            });
        }
        None
    }

    /// Whether the device must be told about what was added since the last time this was asked.
    pub fn take_kick(&mut self) -> bool {
        if !self.unannounced {
            return false;
        }
        self.unannounced = false;
        // The device's flag is to be read after our index is visible, else both sides might wait for each other.
        fence(Ordering::SeqCst);
        self.load_u16(self.used, 0) & NO_NOTIFY == 0
    }

    fn lend(&mut self, index: u16, next: Option<u16>, piece: Piece) -> Lent {
        let mut flags = 0;
        if piece.filler == Filler::Device {
            flags |= DESCRIPTOR_WRITE;
        }
        if next.is_some() {
            flags |= DESCRIPTOR_NEXT;
        }
        let (address, len, memory) = lent(piece.bytes);
        let entry = self
            .descriptors
            .wrapping_add(DESCRIPTOR_BYTES * usize::from(index));
        self.store_u32(entry, 0, address as u32);
        self.store_u32(entry, 4, (address >> 32) as u32);
        self.store_u32(entry, 8, len as u32);
        self.store_u16(entry, 12, flags);
        self.store_u16(entry, 14, next.unwrap_or(0));
        Lent {
            descriptor: index,
            memory,
        }
    }

    fn take_back(&mut self, lent: Lent) -> Option<Vec<u8>> {
        self.free.push(lent.descriptor);
        match lent.memory {
            Memory::Own { start, len, capacity } => {
                // SAFETY: the three numbers were taken from a `Vec` that was never dropped; the chain that held them is
                // gone from `chains`, so this happens once, and the device no longer uses the memory.
                Some(unsafe { Vec::from_raw_parts(start, len, capacity) })
            }
            Memory::Shared(whole) => {
                drop(ManuallyDrop::into_inner(whole));
                None
            }
        }
    }

    fn publish(&mut self, head: u16) {
        let slot = 4 + 2 * usize::from(self.next_available % self.size);
        self.store_u16(self.available, slot, head);
        self.next_available = self.next_available.wrapping_add(1);
        // The device must see the entry before the index that covers it.
        fence(Ordering::Release);
        self.store_u16(self.available, 2, self.next_available);
        self.unannounced = true;
    }

    fn load_u16(&self, part: *mut u8, offset: usize) -> u16 {
        // SAFETY: every caller passes a place inside one of the three parts, which are aligned for it.
        unsafe { part.wrapping_add(offset).cast::<u16>().read_volatile() }
    }

    fn load_u32(&self, part: *mut u8, offset: usize) -> u32 {
        // SAFETY: every caller passes a place inside one of the three parts, which are aligned for it.
        unsafe { part.wrapping_add(offset).cast::<u32>().read_volatile() }
    }

    fn store_u16(&mut self, part: *mut u8, offset: usize, value: u16) {
        // SAFETY: every caller passes a place inside one of the three parts, which are aligned for it.
        unsafe { part.wrapping_add(offset).cast::<u16>().write_volatile(value) }
    }

    fn store_u32(&mut self, part: *mut u8, offset: usize, value: u32) {
        // SAFETY: every caller passes a place inside one of the three parts, which are aligned for it.
        unsafe { part.wrapping_add(offset).cast::<u32>().write_volatile(value) }
    }
}

/// Address and length of bytes, and their memory as the queue keeps it while the device has them.
fn lent(bytes: Bytes) -> (u64, usize, Memory) {
    match bytes {
        Bytes::Own(bytes) => {
            let mut bytes = ManuallyDrop::new(bytes);
            let (start, len, capacity) = (bytes.as_mut_ptr(), bytes.len(), bytes.capacity());
            let memory = Memory::Own { start, len, capacity };
            (start.expose_provenance() as u64, len, memory)
        }
        Bytes::Shared(whole, part) => {
            let address = whole[part.clone()].as_ptr().expose_provenance() as u64;
            (address, part.len(), Memory::Shared(ManuallyDrop::new(whole)))
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
