//! A private copy of what a guest wants written, aligned for direct I/O.
//!
//! Made by `submit.rs` when it takes a write, because the guest may change its memory while the write is held; and
//! by `change.rs` for zeros. It never grows and is never written again.

use lockstep_staging::chain::Segment;
use vm_memory::{Bytes, GuestMemory, GuestMemoryError};

use crate::limits::BUFFER_ALIGNMENT;

/// Some bytes, aligned.
#[derive(Debug)]
pub struct Payload {
    /// Longer than needed, so that some byte near its beginning is aligned. Never grows, so it never moves.
    buffer: Vec<u8>,
    start: usize,
    length: usize,
}

impl Payload {
    /// This many zeros.
    pub fn zeros(length: usize) -> Self {
        let buffer = vec![0; length + BUFFER_ALIGNMENT];
        let start = buffer.as_ptr().align_offset(BUFFER_ALIGNMENT);
        assert!(start < BUFFER_ALIGNMENT, "bytes can be aligned to anything");
        Self {
            buffer,
            start,
            length,
        }
    }

    /// What these segments of guest memory hold now.
    pub fn copy<M: GuestMemory>(memory: &M, segments: &[Segment]) -> Result<Self, GuestMemoryError> {
        let length = segments.iter().map(|segment| segment.length as usize).sum();
        let mut payload = Self::zeros(length);
        let mut rest = &mut payload.buffer[payload.start..][..length];
        for segment in segments {
            let (part, later) = rest.split_at_mut(segment.length as usize);
            memory.read_slice(part, segment.start)?;
            rest = later;
        }
        Ok(payload)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..][..self.length]
    }
}
