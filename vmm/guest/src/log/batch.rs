//! A batch: the unit in which changes reach the disk, whole or not at all. The log seals batches, recovery opens them;
//! this file alone knows their bytes. Each batch names the checksum of the one before it, so that what an earlier life
//! of the disk left behind can never pass for a continuation.

use alloc::vec::Vec;
use core::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

use crate::disk::SECTOR_BYTES;
use crate::limits::{BATCH_MAX, LOG_SPARE_MAX, LOG_STEP};
use crate::store::op::Op;
use crate::units::Time;

/// Length of the head that precedes the changes.
pub(super) const HEAD_BYTES: usize = 48;
const MAGIC: u32 = u32::from_le_bytes(*b"LSB1");

/// What ties a batch to its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Which life of the area.
    pub(super) generation: u64,
    /// Number of the batch in it.
    pub(super) sequence: u64,
    /// Checksum of the batch before, or the superblock's nonce.
    pub(super) previous: u64,
}

impl Link {
    /// The link of the batch that follows one with this checksum.
    pub(super) fn next(self, check: u64) -> Link {
        Link {
            sequence: self.sequence + 1,
            previous: check,
            ..self
        }
    }
}

/// Why bytes are not the batch that should be at their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoBatch {
    /// More bytes are needed: so many in all.
    Needs(usize),
    /// Something else, or a batch that was never finished.
    Other,
}

/// An opened batch.
#[derive(Debug)]
pub(super) struct Opened {
    /// Where the encoded changes lie.
    pub(super) changes: Range<usize>,
    /// Guest time when it was sealed.
    pub(super) time: Time,
    /// Its checksum.
    pub(super) check: u64,
    /// How many bytes it takes on disk.
    pub(super) bytes: usize,
}

/// Empties a buffer and leaves room for the head.
pub(super) fn begin(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.resize(HEAD_BYTES, 0);
}

/// The capacity that a buffer must grow to before so many bytes and the padding fit; none if they do. It doubles only as
/// long as it stays one that is worth keeping.
pub(super) fn grown(buffer: &Vec<u8>, more: usize) -> Option<usize> {
    let len = buffer.len() + more;
    if len.next_multiple_of(SECTOR_BYTES) <= buffer.capacity() {
        return None;
    }
    let doubled = (2 * buffer.capacity()).min(LOG_SPARE_MAX);
    Some(len.max(doubled).next_multiple_of(LOG_STEP))
}

/// Adds a change. The buffer grows by no more than it must, and never again when it is sealed.
pub(super) fn append(buffer: &mut Vec<u8>, op: &Op<'_>) {
    if let Some(capacity) = grown(buffer, op.encoded_len()) {
        buffer.reserve_exact(capacity - buffer.len());
    }
    op.encode(buffer);
}

/// What a buffer that was begun will take on disk.
pub(super) fn sealed_len(buffer: &[u8]) -> usize {
    buffer.len().next_multiple_of(SECTOR_BYTES)
}

/// Fills the head in and pads to whole sectors; answers the checksum.
pub(super) fn seal(buffer: &mut Vec<u8>, link: Link, time: Time) -> u64 {
    let len = (buffer.len() - HEAD_BYTES) as u32;
    buffer[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    buffer[4..8].copy_from_slice(&len.to_le_bytes());
    buffer[8..16].copy_from_slice(&link.generation.to_le_bytes());
    buffer[16..24].copy_from_slice(&link.sequence.to_le_bytes());
    buffer[24..32].copy_from_slice(&link.previous.to_le_bytes());
    buffer[32..40].copy_from_slice(&time.as_nanos().to_le_bytes());
    buffer[40..48].fill(0);
    let check = xxh3_64(buffer);
    buffer[40..48].copy_from_slice(&check.to_le_bytes());
    debug_assert!(sealed_len(buffer) <= buffer.capacity(), "`append` made room");
    buffer.resize(sealed_len(buffer), 0);
    check
}

/// Opens the batch at the front of `bytes`, if it is the one with this link. The bytes are changed and changed back.
pub(super) fn open(bytes: &mut [u8], link: Link) -> Result<Opened, NoBatch> {
    let Some(head) = bytes.first_chunk::<HEAD_BYTES>() else {
        return Err(NoBatch::Needs(HEAD_BYTES));
    };
    let long = |at: usize| u64::from_le_bytes(core::array::from_fn(|byte| head[at + byte]));
    let word = |at: usize| u32::from_le_bytes(core::array::from_fn(|byte| head[at + byte]));
    let found = Link {
        generation: long(8),
        sequence: long(16),
        previous: long(24),
    };
    let len = HEAD_BYTES + word(4) as usize;
    if word(0) != MAGIC || found != link || len > BATCH_MAX {
        return Err(NoBatch::Other);
    }
    let (time, check) = (Time::from_nanos(long(32)), long(40));
    let total = len.next_multiple_of(SECTOR_BYTES);
    if bytes.len() < total {
        return Err(NoBatch::Needs(total));
    }
    bytes[40..48].fill(0);
    let right = xxh3_64(&bytes[..len]) == check;
    bytes[40..48].copy_from_slice(&check.to_le_bytes());
    if !right {
        return Err(NoBatch::Other);
    }
    Ok(Opened {
        changes: HEAD_BYTES..len,
        time,
        check,
        bytes: total,
    })
}
