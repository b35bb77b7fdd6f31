//! What a device process put into a ring, as its VMM reads it: one copy out of shared memory, then checked.
//!
//! Called by [`VmmEnd`](crate::vmm_end::VmmEnd) while it pops. The process may change an entry at any time, so nothing is
//! looked at twice.

use lockstep_protocol::ids::{Head, QueueIndex};
use vm_memory::{Bytes, VolatileSlice};
use zerocopy::{FromZeros, IntoBytes};

use crate::limits::{COMPLETION_BYTES_MAX, FRAME_BYTES_MAX};
use crate::message::{Staged, StagedHeader, tag};
use crate::ring::Fault;

/// An entry of the frames ring replaces what is in `bytes`; says how long it is.
pub(crate) fn read_frame(tag: u32, entry: &VolatileSlice<'_>, bytes: &mut Vec<u8>) -> Result<usize, Fault> {
    if tag != tag::FRAME {
        return Err(Fault::Kind(tag));
    }
    check_length(entry.len(), FRAME_BYTES_MAX)?;
    copy_out(entry, bytes);
    Ok(bytes.len())
}

/// An entry of the completions ring; the bytes of a completion replace what is in `bytes`.
pub(crate) fn read_staged(tag: u32, entry: &VolatileSlice<'_>, bytes: &mut Vec<u8>) -> Result<Staged, Fault> {
    let too_short = || Fault::Length(u32::try_from(entry.len()).unwrap_or(u32::MAX));
    let mut header = StagedHeader::new_zeroed();
    entry
        .read_slice(header.as_mut_bytes(), 0)
        .map_err(|_| too_short())?;
    let queue = QueueIndex::new(header.queue);
    match tag {
        tag::COMPLETION => {
            let payload = entry.offset(size_of::<StagedHeader>()).map_err(|_| too_short())?;
            check_length(payload.len(), COMPLETION_BYTES_MAX)?;
            copy_out(&payload, bytes);
            Ok(Staged::Completion {
                queue,
                head: Head::new(header.value),
            })
        }
        tag::RETURNED => Ok(Staged::Returned {
            queue,
            count: header.value,
        }),
        unknown => Err(Fault::Kind(unknown)),
    }
}

/// A ring takes longer entries than an honest device process makes, and a record takes no longer ones.
fn check_length(length: usize, max: usize) -> Result<(), Fault> {
    match length <= max {
        true => Ok(()),
        false => Err(Fault::Length(u32::try_from(length).unwrap_or(u32::MAX))),
    }
}

/// The one copy out of shared memory. What was in `bytes` is overwritten, not zeroed first.
fn copy_out(entry: &VolatileSlice<'_>, bytes: &mut Vec<u8>) {
    bytes.resize(entry.len(), 0);
    entry.copy_to(bytes.as_mut_slice());
}
