//! A virtqueue as the VMM of a protected VM keeps it: the only place where an avail index is read and a used ring moves.
//!
//! Both hosts run the same calls at the same positions, so indices and in-flight heads are equal on both without being
//! sent. The device process is told heads and never sees the rings' indices. A guest that breaks a ring's rules breaks
//! only its own queue ([`Ring::is_broken`]).

use lockstep_protocol::ids::Head;
use std::collections::VecDeque;
use std::io::Write;
use std::ops::{Deref, Range};
use std::sync::Arc;
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// The largest queue that is offered.
pub const QUEUE_SIZE_MAX: u16 = 256;
/// `VRING_USED_F_NO_NOTIFY`: the guest need not kick this queue.
const USED_F_NO_NOTIFY: u16 = 1;

/// Where `num_buffers` lies in the header before every frame (virtio 1.2, section 5.1.6).
const NUM_BUFFERS: Range<usize> = 10..12;

/// A chain the guest made available and that is not yet used. Its descriptors are read when it is completed.
type Chain = DescriptorChain<Arc<GuestMemoryMmap>>;

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
        self.inflight
            .iter()
            .map(|chain| Head::new(chain.head_index()))
            .collect()
    }

    /// Whether this chain is in flight.
    #[must_use]
    pub fn has_inflight(&self, head: Head) -> bool {
        self.inflight.iter().any(|chain| chain.head_index() == head.get())
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
    pub fn silence_kicks(&mut self, memory: &GuestMemoryMmap) {
        let flags = GuestAddress(self.queue.used_ring());
        self.broken |= memory.write_obj(USED_F_NO_NOTIFY.to_le(), flags).is_err();
    }

    /// Takes every newly available chain in flight and says which they are.
    pub fn take_kicked(&mut self, memory: &Arc<GuestMemoryMmap>) -> Vec<Head> {
        let mut heads = Vec::new();
        while let Some(chain) = self.pop(memory) {
            heads.push(Head::new(chain.head_index()));
            self.inflight.push_back(chain);
        }
        heads
    }

    /// A look ahead at the chains that wait, changing nothing.
    #[must_use]
    pub fn look_ahead(&self, memory: &Arc<GuestMemoryMmap>) -> LookAhead {
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
    pub fn receive(&mut self, memory: &Arc<GuestMemoryMmap>, frame: &[u8], merges: bool) -> bool {
        let before = self.queue.next_avail();
        let mut chains = Vec::new();
        let mut room = 0;
        while room < frame.len() && (merges || chains.is_empty()) {
            let Some(chain) = self.pop(memory) else { break };
            room += capacity(chain.clone());
            chains.push(chain);
        }
        if room < frame.len() || chains.is_empty() {
            self.queue.set_next_avail(before);
            return false;
        }
        self.fill(memory, chains, frame);
        true
    }

    fn fill(&mut self, memory: &Arc<GuestMemoryMmap>, chains: Vec<Chain>, frame: &[u8]) {
        let count = u16::try_from(chains.len()).unwrap_or(u16::MAX).to_le_bytes();
        let (mut rest, mut first) = (frame, true);
        for chain in chains {
            let (piece, later) = rest.split_at(rest.len().min(capacity(chain.clone())));
            let head = chain.head_index();
            let written = match piece.split_at_checked(NUM_BUFFERS.end) {
                Some((header, body)) if first => {
                    write_to(chain, memory, &[&header[..NUM_BUFFERS.start], &count, body])
                }
                _ => write_to(chain, memory, &[piece]),
            };
            self.give_back(memory, head, written);
            (rest, first) = (later, false);
        }
    }

    /// Completes an in-flight chain with `bytes` for its writable part; false when no such head is in flight.
    pub fn complete(&mut self, memory: &GuestMemoryMmap, head: Head, bytes: &[u8]) -> bool {
        let index = self
            .inflight
            .iter()
            .position(|chain| chain.head_index() == head.get());
        let Some(chain) = index.and_then(|index| self.inflight.remove(index)) else {
            return false;
        };
        let written = write_to(chain, memory, &[bytes]);
        self.give_back(memory, head.get(), written);
        true
    }

    /// Gives the `count` oldest in-flight chains back, nothing written; false when there are not so many.
    pub fn complete_oldest(&mut self, memory: &GuestMemoryMmap, count: u16) -> bool {
        if self.inflight.len() < usize::from(count) {
            return false;
        }
        for _ in 0..count {
            let chain = self.inflight.pop_front().expect("the length was checked above");
            self.give_back(memory, chain.head_index(), 0);
        }
        true
    }

    fn pop(&mut self, memory: &Arc<GuestMemoryMmap>) -> Option<Chain> {
        if self.broken || !self.queue.ready() || self.inflight.len() >= usize::from(self.queue.size()) {
            return None;
        }
        self.queue.pop_descriptor_chain(Arc::clone(memory))
    }

    fn give_back(&mut self, memory: &GuestMemoryMmap, head: u16, written: u32) {
        self.broken |= self.queue.add_used(memory, head, written).is_err();
    }
}

fn capacity<M>(chain: DescriptorChain<M>) -> usize
where
    M: Clone + Deref,
    M::Target: GuestMemoryBackend,
{
    chain
        .writable()
        .map(|descriptor| usize::try_from(descriptor.len()).unwrap_or(usize::MAX))
        .fold(0, usize::saturating_add)
}

/// Writes as much of the `pieces` as the chain's writable part takes; guest faults shorten it, they never fail the VMM.
fn write_to(chain: Chain, memory: &GuestMemoryMmap, pieces: &[&[u8]]) -> u32 {
    let Ok(mut writer) = chain.writer(memory) else {
        return 0;
    };
    for piece in pieces {
        let fits = piece.len().min(writer.available_bytes());
        if writer.write_all(&piece[..fits]).is_err() {
            break;
        }
    }
    u32::try_from(writer.bytes_written()).unwrap_or(u32::MAX)
}

/// The capacities of the chains that wait in a ring, in the order in which they will be used.
#[derive(Debug)]
pub struct LookAhead {
    queue: Option<Queue>,
    memory: Arc<GuestMemoryMmap>,
}

impl Iterator for LookAhead {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.queue
            .as_mut()?
            .pop_descriptor_chain(&*self.memory)
            .map(capacity)
    }
}

#[cfg(test)]
mod tests;
