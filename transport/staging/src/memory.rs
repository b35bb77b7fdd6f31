//! The memory both ends share: one sealed memfd with a control page, a page of ring indices and the rings' bytes.
//!
//! Made by the VMM end, checked and mapped by the device end. The seals keep the other side from shrinking the file
//! under our mapping (which would be a SIGBUS). This file knows where things lie and nothing about what they mean.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use thiserror::Error;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use crate::limits::{CHANGED_BLOCKS_MAX, RING_BYTES_MAX, RING_BYTES_MIN};

/// Words of the control page; one cache line (or more) for each writer.
pub(crate) mod word {
    /// VMM writes: log offset that the backup has acked.
    pub(crate) const ACKED: usize = 0;
    /// VMM writes: CLOCK_BOOTTIME nanoseconds until which outputs may leave.
    pub(crate) const LEASE_UNTIL: usize = 8;
    /// VMM writes: the mode, a u32.
    pub(crate) const MODE: usize = 16;
    /// VMM writes: the name of the pairing that began last, in two words.
    pub(crate) const PAIRING: [usize; 2] = [24, 32];
    /// VMM writes: how many pairings have begun.
    pub(crate) const PAIRINGS: usize = 40;
    /// Device writes: the smallest log offset it holds an output for, u64::MAX for none.
    pub(crate) const WAITING_FOR: usize = 128;
    /// Device writes: how many outputs it holds.
    pub(crate) const HELD: usize = 136;
    /// Device writes: how many outputs it has released since set-up.
    pub(crate) const RELEASED: usize = 144;
    /// VMM sleeps on its doorbell: set by the VMM, cleared by whoever rings. A u32.
    pub(crate) const VMM_SLEEPS: usize = 256;
    /// Device sleeps on its doorbell: set by the device, cleared by whoever rings. A u32.
    pub(crate) const DEVICE_SLEEPS: usize = 384;
}

/// Where the index lines begin; each ring has [`INDEX_BYTES`].
const INDICES: usize = 4096;
const INDEX_BYTES: usize = 256;
/// Within a ring's index lines: the producer's line, then the consumer's.
const PRODUCED: usize = 0;
const PRODUCER_WAITS: usize = 8;
const CONSUMED: usize = 128;
/// Where the bits of changed blocks lie: the device sets them, the VMM takes them.
const CHANGED: usize = 8192;
/// Words of 64 of them.
pub(crate) const CHANGED_WORDS: usize = CHANGED_BLOCKS_MAX / 64;
/// Where the rings' bytes begin.
const DATA: usize = CHANGED + CHANGED_WORDS * 8;

const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// The sizes of the three rings, agreed at set-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingSizes {
    pub(crate) completions: u64,
    pub(crate) frames: u64,
    pub(crate) orders: u64,
}

/// Which ring.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Which {
    Completions = 0,
    Frames = 1,
    Orders = 2,
}

/// Why a ring layout or a memfd was not accepted.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// A ring size is no power of two or out of bounds.
    #[error("A ring of {0} bytes is not allowed")]
    RingSize(u64),
    /// The file is not as large as its layout.
    #[error("The shared memory has {found} bytes, its layout needs {needed}")]
    WrongLength {
        /// What the file has.
        found: u64,
        /// What the layout needs.
        needed: u64,
    },
    /// The file could shrink under the mapping.
    #[error("The shared memory is not sealed against resizing")]
    NotSealed,
    /// The kernel refused.
    #[error("Cannot make or map the shared memory")]
    Os(#[from] io::Error),
}

impl RingSizes {
    /// Every ring is a power of two within the limits.
    pub(crate) fn check(self) -> Result<Self, MemoryError> {
        for size in [self.completions, self.frames, self.orders] {
            if !size.is_power_of_two() || !(RING_BYTES_MIN..=RING_BYTES_MAX).contains(&size) {
                return Err(MemoryError::RingSize(size));
            }
        }
        Ok(self)
    }

    /// Bytes of the whole file.
    pub(crate) fn total(self) -> u64 {
        DATA as u64 + self.completions + self.frames + self.orders
    }
}

/// Where one ring lies: its index lines, its bytes, and how many of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingPlace {
    pub(crate) produced: usize,
    pub(crate) producer_waits: usize,
    pub(crate) consumed: usize,
    pub(crate) data: usize,
    pub(crate) capacity: u64,
}

/// The mapped memory. Every access goes through atomics or volatile copies, so it may be shared between threads.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    region: MmapRegion<()>,
    sizes: RingSizes,
}

impl SharedMemory {
    /// Makes a sealed memfd of the right size and maps it; the file is what goes to the other end.
    pub(crate) fn create(sizes: RingSizes) -> Result<(Self, File), MemoryError> {
        let sizes = sizes.check()?;
        let fd = memfd_create(
            "lockstep-staging",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )
        .map_err(io::Error::from)?;
        ftruncate(&fd, sizes.total()).map_err(io::Error::from)?;
        fcntl_add_seals(&fd, SEALS).map_err(io::Error::from)?;
        let file = File::from(fd);
        let memory = Self::map(file.try_clone()?, sizes)?;
        Ok((memory, file))
    }

    /// Checks and maps a memfd that came from the other end.
    pub(crate) fn open(fd: OwnedFd, sizes: RingSizes) -> Result<Self, MemoryError> {
        let sizes = sizes.check()?;
        check_seals(fd.as_fd())?;
        let found = fstat(&fd).map_err(io::Error::from)?.st_size.unsigned_abs();
        if found != sizes.total() {
            return Err(MemoryError::WrongLength {
                found,
                needed: sizes.total(),
            });
        }
        Self::map(File::from(fd), sizes)
    }

    fn map(file: File, sizes: RingSizes) -> Result<Self, MemoryError> {
        let length = usize::try_from(sizes.total()).map_err(io::Error::other)?;
        let region = MmapRegion::from_file(FileOffset::new(file, 0), length).map_err(io::Error::other)?;
        Ok(Self { region, sizes })
    }

    /// Where a ring lies.
    pub(crate) fn place(&self, which: Which) -> RingPlace {
        let RingSizes {
            completions,
            frames,
            orders,
        } = self.sizes;
        let (before, capacity) = match which {
            Which::Completions => (0, completions),
            Which::Frames => (completions, frames),
            Which::Orders => (completions + frames, orders),
        };
        let index = INDICES + which as usize * INDEX_BYTES;
        RingPlace {
            produced: index + PRODUCED,
            producer_waits: index + PRODUCER_WAITS,
            consumed: index + CONSUMED,
            data: DATA + usize::try_from(before).expect("ring sizes are bounded far below usize"),
            capacity,
        }
    }

    /// A shared 64-bit word.
    pub(crate) fn word(&self, offset: usize) -> &AtomicU64 {
        self.region
            .get_atomic_ref(offset)
            .expect("offsets come from this file, are aligned and inside the mapping")
    }

    /// A shared 32-bit word.
    pub(crate) fn flag(&self, offset: usize) -> &AtomicU32 {
        self.region
            .get_atomic_ref(offset)
            .expect("offsets come from this file, are aligned and inside the mapping")
    }

    /// 64 bits of the map of changed blocks.
    pub(crate) fn changed(&self, word: usize) -> &AtomicU64 {
        self.word(CHANGED + word * 8)
    }

    /// Bytes of a ring; `None` when they are not inside the mapping.
    pub(crate) fn slice(&self, offset: usize, length: usize) -> Option<VolatileSlice<'_>> {
        self.region.get_slice(offset, length).ok()
    }
}

fn check_seals(fd: BorrowedFd<'_>) -> Result<(), MemoryError> {
    // A file that knows no seals (EINVAL) is as bad as one without.
    let seals = fcntl_get_seals(fd).unwrap_or(SealFlags::empty());
    if seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
        Ok(())
    } else {
        Err(MemoryError::NotSealed)
    }
}
