//! Where a completion goes: into the staging ring for our VMM to apply (protected), or straight into guest memory and
//! the used ring (plain).
//!
//! Called by `submit.rs` (protected) and `plain.rs` (plain). In a protected VM nothing here, nor anywhere in this
//! process, writes guest memory.

use lockstep_protocol::{Head, QueueIndex};
use lockstep_staging::{DeviceEnd, Mirrored, StageError};
use thiserror::Error;
use vhost_user_backend::{VringRwLock, VringT};
use vm_memory::{
    Bytes, GuestMemory, GuestMemoryAtomic, GuestMemoryError, GuestMemoryMmap, Permissions,
    VolatileMemoryError, VolatileSlice,
};

use crate::request::{Reply, Status};

/// The guest memory that a front-end gave us.
pub type Memory = GuestMemoryMmap<()>;
/// The same, replaceable while we run.
pub type AtomicMemory = GuestMemoryAtomic<Memory>;
/// A queue as the front-end set it up.
pub type Ring = VringRwLock<AtomicMemory>;

/// Which request: no two in flight have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    /// The queue it came from.
    pub queue: QueueIndex,
    /// The head of its chain.
    pub head: Head,
}

/// Why a plain front-end's ring is not served any more. The guest or its front-end broke the ring.
#[derive(Debug, Error)]
pub enum RingError {
    /// The answer's place is gone.
    #[error("Guest memory vanished under a request")]
    Memory(#[from] GuestMemoryError),
    /// The answer's place is gone.
    #[error("A slice of guest memory vanished under a request")]
    Slice(#[from] VolatileMemoryError),
    /// The available ring makes no sense.
    #[error("The available ring is broken")]
    Available(#[source] virtio_queue::Error),
    /// Something was offered that cannot be read.
    #[error("An entry of the available ring lies outside guest memory")]
    NoEntry,
    /// The used ring is not in memory.
    #[error("The used ring cannot be written")]
    Used(#[from] virtio_queue::Error),
    /// The front-end cannot be told.
    #[error("The front-end cannot be notified")]
    Call(#[from] std::io::Error),
}

/// Stages one answer: `fill` writes its data into the room and says the status.
pub fn stage(
    end: &mut DeviceEnd,
    ticket: Ticket,
    reply: &Reply,
    fill: impl FnOnce(&mut [VolatileSlice<'_>]) -> Status,
) -> Result<(), StageError> {
    let length = reply.length as usize;
    end.stage_completion(ticket.queue, ticket.head, length, |room| {
        let (data, place) = room.split_at(length - 1).map_err(std::io::Error::other)?;
        let status = fill(&mut [data]);
        place.write_obj(status as u8, 0).map_err(std::io::Error::other)
    })
}

/// Stages "done, nothing written" for a chain that cannot be answered.
pub fn stage_empty(end: &mut DeviceEnd, ticket: Ticket) -> Result<(), StageError> {
    end.stage_completion_bytes(ticket.queue, ticket.head, &[])
}

/// Stages what a backup's process says of a request that it mirrored.
pub fn stage_mirrored(end: &mut DeviceEnd, ticket: Ticket, mirrored: &Mirrored) -> Result<(), StageError> {
    end.stage_completion_bytes(ticket.queue, ticket.head, &[&mirrored.to_bytes()])
}

/// Answers one request of a plain front-end.
pub fn put(
    ring: &Ring,
    memory: &Memory,
    head: Head,
    reply: &Reply,
    fill: impl FnOnce(&mut [VolatileSlice<'_>]) -> Status,
) -> Result<(), RingError> {
    let mut room = Vec::with_capacity(reply.segments.len());
    for segment in &reply.segments {
        for slice in
            GuestMemory::get_slices(memory, segment.start, segment.length as usize, Permissions::Write)?
        {
            room.push(slice?);
        }
    }
    let last = room
        .pop()
        .expect("a reply has at least its status byte, and no slice is empty");
    let (data, place) = last.split_at(last.len() - 1)?;
    room.push(data);
    let status = fill(&mut room);
    place.write_obj(status as u8, 0)?;
    ring.add_used(head.get(), reply.length)?;
    notify(ring)
}

/// Gives a chain that cannot be answered back to a plain front-end's guest.
pub fn put_empty(ring: &Ring, head: Head) -> Result<(), RingError> {
    ring.add_used(head.get(), 0)?;
    notify(ring)
}

fn notify(ring: &Ring) -> Result<(), RingError> {
    if ring.needs_notification()? {
        ring.signal_used_queue()?;
    }
    Ok(())
}
