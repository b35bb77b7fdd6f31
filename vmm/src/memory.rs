//! Guest memory: one sealed memfd, mapped here and shared with the device processes.
//! The machine builder makes it; the vhost-user front-end passes its file on. Nothing here knows what lies in it.

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::fs::File;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::FromRangesError;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Guest memory. It notes every page that the VMM itself writes; what the guest writes, KVM notes when asked to.
pub type GuestRam = GuestMemoryMmap<AtomicBitmap>;

/// The largest guest that fits below the device window without a second region.
pub const MEMORY_MIB_MAX: u64 = 3072;

/// Why guest memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The kernel gave no memory file.
    #[error("Cannot make a memory file of {mib} MiB for the guest; free memory or lower memory_mib")]
    File {
        /// The size that was asked for.
        mib: u64,
        /// What the kernel answered.
        #[source]
        source: rustix::io::Errno,
    },
    /// The file could not be mapped.
    #[error("Cannot map the guest's {mib} MiB; free memory or lower memory_mib")]
    Map {
        /// The size that was asked for.
        mib: u64,
        /// What the mapping code answered.
        #[source]
        source: FromRangesError,
    },
}

/// Makes zeros of `bytes` bytes from `start` on by giving the host its pages back; false where it does not take them or
/// there are none.
pub fn clear(memory: &GuestRam, start: GuestAddress, bytes: u64) -> bool {
    let Some(region) = memory.find_region(start) else {
        return false;
    };
    let within = start.0 - region.start_addr().0;
    let Some(file) = region.file_offset().filter(|_| bytes <= region.len() - within) else {
        return false;
    };
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file.file(), hole, file.start() + within, bytes).is_ok()
}

/// Makes `mib` MiB of zeroed guest memory starting at guest address 0.
///
/// # Errors
/// When the host has no room for it.
pub fn create(mib: u64) -> Result<GuestRam, MemoryError> {
    let file = |source| MemoryError::File { mib, source };
    let bytes = mib << 20;
    let memfd =
        memfd_create("lockstep-guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).map_err(file)?;
    ftruncate(&memfd, bytes).map_err(file)?;
    // A device process that could shrink the file would kill this one with SIGBUS.
    fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).map_err(file)?;
    let size = usize::try_from(bytes).expect("this crate is for 64-bit hosts");
    let range = (GuestAddress(0), size, Some(FileOffset::new(File::from(memfd), 0)));
    GuestRam::from_ranges_with_files([range]).map_err(|source| MemoryError::Map { mib, source })
}
