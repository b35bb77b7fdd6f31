//! A virtqueue as the VMM of a protected VM keeps it: the only place where an avail index is read and a used ring moves.
//!
//! Both hosts run the same calls at the same positions, so indices and in-flight heads are equal on both without being
//! sent. The device process is told heads and never sees the rings' indices. A guest that breaks a ring's rules breaks
//! only its own queue ([`Ring::is_broken`]).

mod state;

pub use state::RingState;

use crate::memory::GuestRam;
use lockstep_protocol::ids::Head;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// The largest queue that is offered.
pub const QUEUE_SIZE_MAX: u16 = 256;
/// `VRING_USED_F_NO_NOTIFY`: the guest need not kick this queue.
const USED_F_NO_NOTIFY: u16 = 1;

/// Where `num_buffers` lies in the header before every frame (virtio 1.2, section 5.1.6).
const NUM_BUFFERS: Range<usize> = 10..12;

/// A chain that the guest made available and that is not yet used. Its descriptors are read when it is taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Chain {
    head: u16,
    /// What the device may write, in order.
    writable: Vec<Span>,
}

/// A buffer of the guest.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Span {
    address: u64,
    length: u32,
}

/// One virtqueue.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
    inflight: VecDeque<Chain>,
    broken: bool,
}

impl Default for Ring {
    fn default() -> Self {
        let queue = Queue::new(QUEUE_SIZE_MAX).expect("the limit is a power of two below 32768");
        Self {
            queue,
            inflight: VecDeque::new(),
            broken: false,
        }
    }
}

impl Ring {
    /// The registers' view, for the device window and the front-end.
    #[must_use]
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The registers' view, to be set up by the guest before it is ready.
    pub fn queue_mut(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// Heads the guest made available and nobody completed, oldest first.
    #[must_use]
    pub fn inflight(&self) -> Vec<Head> {
        self.inflight.iter().map(|chain| Head::new(chain.head)).collect()
    }

    /// Whether this chain is in flight.
    #[must_use]
    pub fn has_inflight(&self, head: Head) -> bool {
        self.inflight.iter().any(|chain| chain.head == head.get())
    }

    /// How many chains are in flight.
    #[must_use]
    pub fn inflight_len(&self) -> usize {
        self.inflight.len()
    }

    /// Whether the guest broke the rules; a broken queue does nothing until reset.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Tells the guest that adding buffers needs no kick. Called once, when the driver is ready.
    pub fn silence_kicks(&mut self, memory: &GuestRam) {
        let flags = GuestAddress(self.queue.used_ring());
        self.broken |= memory.write_obj(USED_F_NO_NOTIFY.to_le(), flags).is_err();
    }

    /// Takes every newly available chain in flight and says which they are.
    pub fn take_kicked(&mut self, memory: &Arc<GuestRam>) -> Vec<Head> {
        let mut heads = Vec::new();
        while let Some(chain) = self.pop(memory) {
            heads.push(Head::new(chain.head));
            self.inflight.push_back(chain);
        }
        heads
    }

    /// A look ahead at the chains that wait, changing nothing.
    #[must_use]
    pub fn look_ahead(&self, memory: &Arc<GuestRam>) -> LookAhead {
        let queue = Queue::try_from(self.queue.state())
            .ok()
            .filter(|queue| !self.broken && queue.ready());
        LookAhead {
            queue,
            memory: Arc::clone(memory),
        }
    }

    /// Puts a received frame into the next available chains: one, or as many as it takes if the driver merges buffers.
    /// False when the guest has no room for it; then nothing changed.
    pub fn receive(&mut self, memory: &Arc<GuestRam>, frame: &[u8], merges: bool) -> bool {
        let before = self.queue.next_avail();
        let mut chains = Vec::new();
        let mut room = 0;
        while room < frame.len() && (merges || chains.is_empty()) {
            let Some(chain) = self.pop(memory) else { break };
            room += chain.capacity();
            chains.push(chain);
        }
        if room < frame.len() || chains.is_empty() {
            self.queue.set_next_avail(before);
            return false;
        }
        self.fill(memory, chains, frame);
        true
    }

    fn fill(&mut self, memory: &GuestRam, chains: Vec<Chain>, frame: &[u8]) {
        let count = u16::try_from(chains.len()).unwrap_or(u16::MAX).to_le_bytes();
        let (mut rest, mut first) = (frame, true);
        for chain in chains {
            let (piece, later) = rest.split_at(rest.len().min(chain.capacity()));
            let written = match piece.split_at_checked(NUM_BUFFERS.end) {
                Some((header, body)) if first => {
                    chain.write(memory, &[&header[..NUM_BUFFERS.start], &count, body])
                }
                _ => chain.write(memory, &[piece]),
            };
            self.give_back(memory, chain.head, written);
            (rest, first) = (later, false);
        }
    }

    /// Completes an in-flight chain with `bytes` for its writable part; false when no such head is in flight.
    pub fn complete(&mut self, memory: &GuestRam, head: Head, bytes: &[u8]) -> bool {
        let index = self.inflight.iter().position(|chain| chain.head == head.get());
        let Some(chain) = index.and_then(|index| self.inflight.remove(index)) else {
            return false;
        };
        let written = chain.write(memory, &[bytes]);
        self.give_back(memory, head.get(), written);
        true
    }

    /// Gives the `count` oldest in-flight chains back, nothing written; false when there are not so many.
    pub fn complete_oldest(&mut self, memory: &GuestRam, count: u16) -> bool {
        if self.inflight.len() < usize::from(count) {
            return false;
        }
        for _ in 0..count {
            let chain = self.inflight.pop_front().expect("the length was checked above");
            self.give_back(memory, chain.head, 0);
        }
        true
    }

    fn pop(&mut self, memory: &Arc<GuestRam>) -> Option<Chain> {
        if self.broken || !self.queue.ready() || self.inflight.len() >= usize::from(self.queue.size()) {
            return None;
        }
        self.queue.pop_descriptor_chain(&**memory).map(Chain::read)
    }

    fn give_back(&mut self, memory: &GuestRam, head: u16, written: u32) {
        self.broken |= self.queue.add_used(memory, head, written).is_err();
    }
}

impl Chain {
    fn read(chain: DescriptorChain<&GuestRam>) -> Self {
        let head = chain.head_index();
        let mut writable = Vec::new();
        let add = |address, length| writable.push(Span { address, length });
        if !for_writable(chain, add) {
            writable = Vec::new();
        }
        Self { head, writable }
    }

    fn capacity(&self) -> usize {
        let lengths = self.writable.iter().map(|span| span.length);
        lengths
            .map(|length| usize::try_from(length).unwrap_or(usize::MAX))
            .fold(0, usize::saturating_add)
    }

    /// Writes as much of the `pieces` as the writable part takes; a guest's fault shortens it, it never fails the VMM.
    fn write(&self, memory: &GuestRam, pieces: &[&[u8]]) -> u32 {
        let lies_in_memory = |span: &Span| {
            let length = usize::try_from(span.length).unwrap_or(usize::MAX);
            GuestMemoryBackend::check_range(memory, GuestAddress(span.address), length)
        };
        if !self.writable.iter().all(lies_in_memory) {
            return 0;
        }
        let mut pieces = pieces.iter();
        let (mut rest, mut written) = ([].as_slice(), 0_u32);
        for span in &self.writable {
            let mut done = 0_u32;
            while done < span.length {
                if rest.is_empty() {
                    match pieces.next() {
                        Some(piece) => rest = piece,
                        None => return written,
                    }
                    continue;
                }
                let fits = rest
                    .len()
                    .min(usize::try_from(span.length - done).unwrap_or(usize::MAX));
                let (now, later) = rest.split_at(fits);
                let at = GuestAddress(span.address + u64::from(done));
                if memory.write_slice(now, at).is_err() {
                    return written;
                }
                let count = u32::try_from(fits).expect("no longer than the buffer");
                (rest, done, written) = (later, done + count, written.saturating_add(count));
            }
        }
        written
    }
}

/// Tells `each` address and length of what the device may write. False for a chain that is longer than a driver may make one
/// (virtio 1.2, section 2.7.5.3.1): the device may write nothing of that, which bounds what is kept of it.
fn for_writable(chain: DescriptorChain<&GuestRam>, mut each: impl FnMut(u64, u32)) -> bool {
    for (index, descriptor) in chain.enumerate() {
        if index == usize::from(QUEUE_SIZE_MAX) {
            return false;
        }
        if descriptor.is_write_only() {
            each(descriptor.addr().0, descriptor.len());
        }
    }
    true
}

/// The capacities of the chains that wait in a ring, in the order in which they will be used.
#[derive(Debug)]
pub struct LookAhead {
    queue: Option<Queue>,
    memory: Arc<GuestRam>,
}

impl Iterator for LookAhead {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let chain = self.queue.as_mut()?.pop_descriptor_chain(&*self.memory)?;
        let mut room = 0_usize;
        let add = |_, length| room = room.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
        Some(if for_writable(chain, add) { room } else { 0 })
    }
}

#[cfg(test)]
mod tests;
