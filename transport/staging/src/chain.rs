//! A descriptor chain as the guest wrote it: walked once, checked once, into a list of segments.
//!
//! Called by device processes with every head that a queue yields or a VMM orders. It only reads guest memory, believes
//! nothing in it, and never follows more than a fixed number of descriptors. What the segments mean is the device's
//! business.

use lockstep_protocol::ids::Head;
use thiserror::Error;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, Permissions};

use crate::limits::CHAIN_DESCRIPTORS_MAX;

/// Where a queue's descriptors lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// The first descriptor.
    pub start: GuestAddress,
    /// How many there are.
    pub size: u16,
}

/// Some bytes of guest memory that lie inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The first byte.
    pub start: GuestAddress,
    /// How many bytes.
    pub length: u32,
}

/// A chain of correct form: first what the device may read, then what it may write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// What the driver says, in order.
    pub readable: Vec<Segment>,
    /// Where the device answers, in order.
    pub writable: Vec<Segment>,
}

/// Why a chain cannot be used. It goes back to the guest with length 0.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BadChain {
    /// A descriptor's index or a table's address leads nowhere.
    #[error("A descriptor lies outside its table or outside guest memory")]
    NoDescriptor,
    /// A loop, or a chain longer than any driver needs.
    #[error("A chain has more descriptors than its table or than {CHAIN_DESCRIPTORS_MAX}")]
    TooLong,
    /// An indirect table inside an indirect table, with a successor, or of an odd length.
    #[error("An indirect descriptor table is malformed")]
    BadIndirect,
    /// The specification puts everything readable before everything writable.
    #[error("A readable descriptor follows a writable one")]
    OutOfOrder,
    /// A segment reaches outside guest memory.
    #[error("A segment lies outside guest memory")]
    NoMemory,
    /// The specification allows no chain of 4 GiB.
    #[error("A chain has 4 GiB of bytes or more")]
    TooManyBytes,
}

impl Chain {
    /// Walks the chain that begins at `head`.
    pub fn read<M: GuestMemory>(memory: &M, table: Table, head: Head) -> Result<Self, BadChain> {
        let mut walk = Walk {
            table,
            next: head.get(),
            indirect: false,
            left: usize::from(table.size),
        };
        let mut chain = Self::default();
        let mut bytes = 0_u32;
        let mut descriptors = 0;
        loop {
            let descriptor = walk.step(memory)?;
            descriptors += 1;
            if descriptors > CHAIN_DESCRIPTORS_MAX {
                return Err(BadChain::TooLong);
            }
            bytes = bytes
                .checked_add(descriptor.len())
                .ok_or(BadChain::TooManyBytes)?;
            chain.push(memory, descriptor)?;
            if !descriptor.has_next() {
                return Ok(chain);
            }
            walk.next = descriptor.next();
        }
    }

    fn push<M: GuestMemory>(&mut self, memory: &M, descriptor: Descriptor) -> Result<(), BadChain> {
        let segment = Segment {
            start: descriptor.addr(),
            length: descriptor.len(),
        };
        let access = if descriptor.is_write_only() {
            Permissions::Write
        } else {
            Permissions::Read
        };
        if !memory.check_range(segment.start, segment.length as usize, access) {
            return Err(BadChain::NoMemory);
        }
        if descriptor.is_write_only() {
            self.writable.push(segment);
        } else if self.writable.is_empty() {
            self.readable.push(segment);
        } else {
            return Err(BadChain::OutOfOrder);
        }
        Ok(())
    }
}

/// Where a walk is.
struct Walk {
    table: Table,
    next: u16,
    indirect: bool,
    /// A chain visits no descriptor twice, so it is never longer than its table.
    left: usize,
}

impl Walk {
    /// The next descriptor that is not a way into an indirect table.
    fn step<M: GuestMemory>(&mut self, memory: &M) -> Result<Descriptor, BadChain> {
        let descriptor = self.load(memory)?;
        if !descriptor.refers_to_indirect_table() {
            return Ok(descriptor);
        }
        self.enter(descriptor)?;
        let first = self.load(memory)?;
        if first.refers_to_indirect_table() {
            Err(BadChain::BadIndirect)
        } else {
            Ok(first)
        }
    }

    fn load<M: GuestMemory>(&mut self, memory: &M) -> Result<Descriptor, BadChain> {
        if self.next >= self.table.size {
            return Err(BadChain::NoDescriptor);
        }
        self.left = self.left.checked_sub(1).ok_or(BadChain::TooLong)?;
        let offset = u64::from(self.next) * size_of::<Descriptor>() as u64;
        let place = self
            .table
            .start
            .checked_add(offset)
            .ok_or(BadChain::NoDescriptor)?;
        memory.read_obj(place).map_err(|_| BadChain::NoDescriptor)
    }

    fn enter(&mut self, way: Descriptor) -> Result<(), BadChain> {
        let entries = way.len() as usize / size_of::<Descriptor>();
        let whole = way.len() as usize == entries * size_of::<Descriptor>();
        let size = u16::try_from(entries).map_err(|_| BadChain::TooLong)?;
        if self.indirect || !whole || size == 0 || way.has_next() {
            return Err(BadChain::BadIndirect);
        }
        let table = Table {
            start: way.addr(),
            size,
        };
        *self = Self {
            table,
            next: 0,
            indirect: true,
            left: entries,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
