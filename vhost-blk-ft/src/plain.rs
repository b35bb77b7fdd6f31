//! A plain front-end's rings (QEMU, cloud-hypervisor): every request is served at once, in the guest's own memory.
//!
//! Called by `backend.rs` on a kick, and only in a process that was started without a staging socket: a protected VM's
//! memory is never written by this process.

use std::sync::atomic::Ordering;

use lockstep_protocol::Head;
use lockstep_staging::chain::{Chain, Segment};
use vhost_user_backend::{VringState, VringT};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{GuestMemory, Permissions};

use crate::change::{Change, Progress};
use crate::complete::{Failures, fill};
use crate::disk::Disk;
use crate::limits::PLAIN_TRANSFER_MAX;
use crate::request::{Command, NoAnswer, Request, Status};
use crate::sink::{self, AtomicMemory, Memory, Ring, RingError};
use crate::submit::{bounds, table_of};

/// Serves what a plain front-end's guest has queued, one ring after the other until none has anything left.
pub fn serve_rings(
    rings: &[Ring],
    memory: &Memory,
    disk: &mut Disk,
    failures: &mut Failures,
) -> Result<(), RingError> {
    loop {
        let mut any = false;
        for ring in rings.iter().filter(|ring| is_running(ring)) {
            ring.disable_notification()?;
            // No more than one ring's worth before the next ring's turn.
            let turn = table_of(ring).size;
            for _ in 0..turn {
                let Some(head) = pop(ring, memory)? else { break };
                serve(ring, memory, disk, failures, head)?;
            }
            any |= ring.enable_notification()?;
        }
        if !any {
            return Ok(());
        }
    }
}

fn is_running(ring: &Ring) -> bool {
    runs(&ring.get_ref())
}

fn runs(state: &VringState<AtomicMemory>) -> bool {
    state.is_enabled() && state.get_queue().ready()
}

/// The next head; an index that no head can be found for would be looked at for ever, so it ends the service of the ring.
fn pop(ring: &Ring, memory: &Memory) -> Result<Option<Head>, RingError> {
    let mut state = ring.get_mut();
    if !runs(&state) {
        // Its front-end stopped it meanwhile.
        return Ok(None);
    }
    let queue = state.get_queue_mut();
    let offered = queue
        .avail_idx(memory, Ordering::Acquire)
        .map_err(RingError::Available)?;
    let is_empty = offered.0 == queue.next_avail();
    let next = queue.iter(memory).map_err(RingError::Available)?.next();
    match next.map(|chain| Head::new(chain.head_index())) {
        None if !is_empty => Err(RingError::NoEntry),
        head => Ok(head),
    }
}

fn serve(
    ring: &Ring,
    memory: &Memory,
    disk: &mut Disk,
    failures: &mut Failures,
    head: Head,
) -> Result<(), RingError> {
    let request = Chain::read(memory, table_of(ring), head)
        .map_err(NoAnswer::from)
        .and_then(|chain| Request::parse(memory, chain, &bounds(disk, PLAIN_TRANSFER_MAX)));
    let Request { command, reply } = match request {
        Ok(request) => request,
        Err(reason) => {
            tracing::debug!(%reason, "A chain cannot be answered");
            // A head that the table does not have cannot even be given back.
            return if head.get() < table_of(ring).size {
                sink::put_empty(ring, head)
            } else {
                Ok(())
            };
        }
    };
    let changed = match command {
        Command::Write(extent, ref segments) => {
            failures.status_of("writing", write_from(memory, segments, disk, extent.at))
        }
        Command::Discard(ref extents) => run(Change::discard(extents.clone()), disk, failures),
        Command::WriteZeroes { ref extents, unmap } => {
            run(Change::write_zeroes(extents.clone(), unmap), disk, failures)
        }
        Command::Flush => failures.status_of("flushing", disk.flush()),
        Command::Read(_) | Command::GetId | Command::Refuse(_) => Status::Ok,
    };
    let command = if changed == Status::Ok {
        command
    } else {
        Command::Refuse(changed)
    };
    sink::put(ring, memory, head, &reply, |room| {
        fill(disk, failures, &command, room)
    })
}

fn run(mut change: Change, disk: &mut Disk, failures: &mut Failures) -> Status {
    loop {
        match change.step(disk) {
            Ok(Progress::More) => {}
            Ok(Progress::Done) => return Status::Ok,
            Err(error) => return failures.status_of("writing", Err(error)),
        }
    }
}

fn write_from(memory: &Memory, segments: &[Segment], disk: &mut Disk, at: u64) -> std::io::Result<()> {
    let mut data = Vec::with_capacity(segments.len());
    for segment in segments {
        let slices =
            GuestMemory::get_slices(memory, segment.start, segment.length as usize, Permissions::Read);
        for slice in slices.map_err(std::io::Error::other)? {
            data.push(slice.map_err(std::io::Error::other)?);
        }
    }
    disk.write(at, &data)
}
