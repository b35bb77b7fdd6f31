//! A virtqueue as it travels to another host: indices, addresses, and the chains in flight in their order.
//! `state.rs` asks for it and gives it back; it never looks into guest memory.

use super::{Chain, QUEUE_SIZE_MAX, Ring};
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState, QueueT};

/// What a ring is, apart from what lies in guest memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RingState {
    next_avail: u16,
    next_used: u16,
    event_idx_enabled: bool,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
    inflight: Vec<Chain>,
    broken: bool,
}

impl Ring {
    /// The ring, to be built again elsewhere.
    #[must_use]
    pub fn state(&self) -> RingState {
        let queue = self.queue.state();
        RingState {
            next_avail: queue.next_avail,
            next_used: queue.next_used,
            event_idx_enabled: queue.event_idx_enabled,
            size: queue.size,
            ready: queue.ready,
            desc_table: queue.desc_table,
            avail_ring: queue.avail_ring,
            used_ring: queue.used_ring,
            inflight: self.inflight.iter().cloned().collect(),
            broken: self.broken,
        }
    }

    /// The ring again; `None` when no ring can be in this state.
    #[must_use]
    pub fn from_state(state: &RingState) -> Option<Self> {
        let queue = Queue::try_from(QueueState {
            max_size: QUEUE_SIZE_MAX,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx_enabled: state.event_idx_enabled,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        });
        let queue = queue.ok()?;
        (state.inflight.len() <= usize::from(queue.size())).then(|| Self {
            queue,
            inflight: state.inflight.iter().cloned().collect(),
            broken: state.broken,
        })
    }
}
