//! What an output does to the disk, one system call at a time.
//!
//! `submit.rs` asks whether it may issue before each [`Change::step`]; so a change that was begun inside the lease stops
//! where it is when the lease is over. Doing a change again from the beginning has the same effect as doing it once.

use std::io;

use crate::disk::Disk;
use crate::limits::ZERO_STEP;
use crate::payload::Payload;
use crate::request::Extent;

/// One write, discard or write-zeroes, and how far it is.
#[derive(Debug)]
pub enum Change {
    /// Bytes at a place.
    Write {
        /// Where.
        at: u64,
        /// What.
        payload: Payload,
        /// How many bytes are written.
        done: usize,
    },
    /// Blocks given back.
    Discard {
        /// Which are left to do, last first.
        left: Vec<Extent>,
    },
    /// Zeros.
    WriteZeroes {
        /// Where they are left to do, last first.
        left: Vec<Extent>,
        /// May blocks be freed?
        unmap: bool,
        /// The storage said that it cannot: these are written out.
        by_hand: Option<Payload>,
    },
}

/// Whether a change is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is more to do.
    More,
    /// It is complete.
    Done,
}

impl Change {
    /// A write.
    pub fn write(at: u64, payload: Payload) -> Self {
        Self::Write { at, payload, done: 0 }
    }

    /// A discard.
    pub fn discard(extents: Vec<Extent>) -> Self {
        Self::Discard {
            left: reversed(extents),
        }
    }

    /// A write-zeroes.
    pub fn write_zeroes(extents: Vec<Extent>, unmap: bool) -> Self {
        Self::WriteZeroes {
            left: reversed(extents),
            unmap,
            by_hand: None,
        }
    }

    /// How many bytes of memory it occupies while it is held.
    pub fn weight(&self) -> usize {
        match self {
            Self::Write { payload, .. } => payload.bytes().len(),
            Self::Discard { left } | Self::WriteZeroes { left, .. } => size_of_val(left.as_slice()),
        }
    }

    /// Goes on with at most one system call that changes the disk.
    pub fn step(&mut self, disk: &mut Disk) -> io::Result<Progress> {
        match self {
            Self::Write { at, payload, done } => {
                *done += some(disk.write_some(*at + *done as u64, &payload.bytes()[*done..]))?;
                Ok(progress(*done == payload.bytes().len()))
            }
            Self::Discard { left } => {
                if let Some(extent) = left.pop() {
                    disk.discard(extent)?;
                }
                Ok(progress(left.is_empty()))
            }
            Self::WriteZeroes { left, unmap, by_hand } => {
                zero_some(disk, left, *unmap, by_hand)?;
                Ok(progress(left.is_empty()))
            }
        }
    }
}

fn zero_some(
    disk: &mut Disk,
    left: &mut Vec<Extent>,
    unmap: bool,
    by_hand: &mut Option<Payload>,
) -> io::Result<()> {
    let Some(extent) = left.last_mut() else {
        return Ok(());
    };
    match by_hand {
        None if disk.zero(*extent, unmap)? => extent.bytes = 0,
        None => *by_hand = Some(Payload::zeros(ZERO_STEP)),
        Some(zeros) => {
            let count = usize::try_from(extent.bytes).map_or(ZERO_STEP, |bytes| bytes.min(ZERO_STEP));
            let written = some(disk.write_some(extent.at, &zeros.bytes()[..count]))? as u64;
            extent.at += written;
            extent.bytes -= written;
        }
    }
    if extent.bytes == 0 {
        left.pop();
    }
    Ok(())
}

fn reversed(mut extents: Vec<Extent>) -> Vec<Extent> {
    extents.reverse();
    extents.retain(|extent| extent.bytes > 0);
    extents
}

/// A write that writes nothing would be tried for ever.
fn some(written: io::Result<usize>) -> io::Result<usize> {
    match written {
        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        other => other,
    }
}

fn progress(done: bool) -> Progress {
    if done { Progress::Done } else { Progress::More }
}

#[cfg(test)]
mod tests;
