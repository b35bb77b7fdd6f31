//! One virtqueue of a plain front-end: heads out of the available ring, completions into the used ring.
//!
//! Called by `rx.rs` and `tx.rs` for as long as one burst lasts. Never used in a protected VM: there the VMM owns both
//! indices. Several completions of one frame become visible to the driver at once, by one step of the used index.

use std::sync::RwLockWriteGuard;
use std::sync::atomic::{Ordering, fence};

use lockstep_protocol::ids::Head;
use lockstep_staging::chain::{BadChain, Chain, Table};
use thiserror::Error;
use vhost_user_backend::{VringRwLock, VringState, VringT};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryError, GuestMemoryMmap};

/// The guest memory that a front-end gave us.
pub type Memory = GuestMemoryMmap<()>;
/// The same, replaceable while we run.
pub type AtomicMemory = GuestMemoryAtomic<Memory>;
/// A queue as the front-end set it up.
pub type Ring = VringRwLock<AtomicMemory>;

/// Bytes of flags and index before the used ring's elements.
const USED_HEADER: u64 = 4;
/// A head and a length, 32 bits each.
const USED_ELEMENT: u64 = 8;
/// Where the used index lies.
const USED_INDEX: u64 = 2;

/// The guest or its front-end broke the queue; it is left alone until it is set up again.
#[derive(Debug, Error)]
pub enum BrokenQueue {
    /// The available ring makes no sense.
    #[error("The available ring is broken")]
    Available(#[from] virtio_queue::Error),
    /// Something was made available that cannot be read.
    #[error("An entry of the available ring lies outside guest memory")]
    NoEntry,
    /// The used ring is not in memory.
    #[error("The used ring lies outside guest memory")]
    Used(#[from] GuestMemoryError),
    /// The used ring wraps around the end of the address space.
    #[error("The used ring lies beyond every address")]
    Address,
    /// A chain's head is beyond the queue.
    #[error("Head {0} is not in the queue")]
    Head(Head),
    /// The front-end cannot be told.
    #[error("The front-end cannot be notified")]
    Call(#[from] std::io::Error),
}

/// A chain that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Its head.
    pub head: Head,
    /// How many bytes were written to it.
    pub length: u32,
}

/// A queue that runs, locked for one burst.
pub struct PlainQueue<'a> {
    state: RwLockWriteGuard<'a, VringState<AtomicMemory>>,
    memory: &'a Memory,
}

impl<'a> PlainQueue<'a> {
    /// The queue, if its front-end has started and enabled it.
    pub fn lock(ring: &'a Ring, memory: &'a Memory) -> Option<Self> {
        let state = ring.get_mut();
        (state.get_queue().ready() && state.is_enabled()).then_some(Self { state, memory })
    }

    /// Guest memory.
    pub fn memory(&self) -> &'a Memory {
        self.memory
    }

    /// How many heads the queue has.
    pub fn size(&self) -> u16 {
        self.state.get_queue().size()
    }

    /// Takes the next head that the driver made available. One that cannot be read would be looked for for ever.
    pub fn pop(&mut self) -> Result<Option<Head>, BrokenQueue> {
        let queue = self.state.get_queue_mut();
        let is_empty = queue.avail_idx(self.memory, Ordering::Acquire)?.0 == queue.next_avail();
        let next = queue.iter(self.memory)?.next();
        match next.map(|chain| Head::new(chain.head_index())) {
            Some(head) if head.get() >= self.size() => Err(BrokenQueue::Head(head)),
            None if !is_empty => Err(BrokenQueue::NoEntry),
            head => Ok(head),
        }
    }

    /// Un-takes the heads taken last, so that they are taken again next time.
    pub fn put_back(&mut self, count: usize) {
        (0..count).for_each(|_| self.state.get_queue_mut().go_to_previous_position());
    }

    /// The chain of a head.
    pub fn chain(&self, head: Head) -> Result<Chain, BadChain> {
        Chain::read(self.memory, table(&self.state), head)
    }

    /// Completes chains; the driver sees all of them at once.
    pub fn complete(&mut self, done: &[Done]) -> Result<(), BrokenQueue> {
        let queue = self.state.get_queue_mut();
        let ring = GuestAddress(queue.used_ring());
        let at = |offset| ring.checked_add(offset).ok_or(BrokenQueue::Address);
        let mut next = queue.next_used();
        for Done { head, length } in done {
            let slot = u64::from(next % queue.size()) * USED_ELEMENT;
            let element = u64::from(head.get()) | u64::from(*length) << 32;
            self.memory.write_obj(element.to_le(), at(USED_HEADER + slot)?)?;
            next = next.wrapping_add(1);
        }
        self.memory
            .store(next.to_le(), at(USED_INDEX)?, Ordering::Release)?;
        queue.set_next_used(next);
        Ok(())
    }

    /// Interrupts the driver, unless it asked not to be.
    pub fn notify(&self) -> Result<(), BrokenQueue> {
        // The driver either sees our index or we see its flag.
        fence(Ordering::SeqCst);
        let available = GuestAddress(self.state.get_queue().avail_ring());
        let flags = u16::from_le(self.memory.load(available, Ordering::Relaxed)?);
        if u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0 {
            self.state.signal_used_queue()?;
        }
        Ok(())
    }

    /// Asks the driver for kicks. `true`: it made something available meanwhile, without one.
    pub fn ask_for_kicks(&mut self) -> Result<bool, BrokenQueue> {
        Ok(self.state.get_queue_mut().enable_notification(self.memory)?)
    }

    /// Tells the driver that kicks are not needed now.
    pub fn spare_kicks(&mut self) -> Result<(), BrokenQueue> {
        Ok(self.state.get_queue_mut().disable_notification(self.memory)?)
    }
}

/// Where the descriptors of a queue lie; what an order's head counts in.
pub fn descriptor_table(ring: &Ring) -> Table {
    table(&ring.get_ref())
}

fn table(state: &VringState<AtomicMemory>) -> Table {
    let queue = state.get_queue();
    Table {
        start: GuestAddress(queue.desc_table()),
        size: queue.size(),
    }
}
