//! Guest memory: one sealed memfd, mapped here and shared with the device processes.
//! The machine builder makes it; the vhost-user front-end passes its file on. Nothing here knows what lies in it.

use crate::state::dirty::Page;
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};
use std::fs::File;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::FromRangesError;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Guest memory. It notes every page that the VMM itself writes; what the guest writes, KVM notes when asked to.
pub type GuestRam = GuestMemoryMmap<AtomicBitmap>;

/// The largest guest that fits below the device window without a second region.
pub const MEMORY_MIB_MAX: u64 = 3072;

/// How much memory is given back at a time. It takes the kernel a while, in which a slow host's heartbeats would wait.
const CLEAR_BYTES: usize = 1 << 20;

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
    /// The kernel did not take pages back.
    #[error("Cannot empty the guest's memory")]
    Clear(#[source] rustix::io::Errno),
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

/// Where a stretch of guest memory lies in the file that it is made of.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The file.
    pub file: &'a File,
    /// Where in it.
    pub at: u64,
    /// How many bytes follow there without a gap.
    pub left: u64,
}

/// The place of what begins at `start`, if there is such memory.
pub fn place_of(memory: &GuestRam, start: GuestAddress) -> Option<Place<'_>> {
    let region = memory.find_region(start)?;
    let within = start.0 - region.start_addr().0;
    let place = region.file_offset().expect("guest memory is made of files");
    Some(Place {
        file: place.file(),
        at: place.start() + within,
        left: region.len() - within,
    })
}

/// Makes zeros of `bytes` bytes from `start` on by giving the host its pages back; false where it does not take them or
/// there are none.
pub fn empty(memory: &GuestRam, start: GuestAddress, bytes: u64) -> bool {
    let place = place_of(memory, start).filter(|place| bytes <= place.left);
    place.is_some_and(|place| fallocate(place.file, HOLE, place.at, bytes).is_ok())
}

const HOLE: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

/// Empties guest memory: it reads as zeros again, here and in device processes.
///
/// # Errors
/// When the kernel does not take the pages back.
pub fn clear(memory: &GuestRam) -> Result<(), MemoryError> {
    for region in memory.iter() {
        let place = region.file_offset().expect("guest memory is made of files");
        for at in (0..region.len()).step_by(CLEAR_BYTES) {
            let length = (region.len() - at).min(CLEAR_BYTES as u64);
            fallocate(place.file(), HOLE, place.start() + at, length).map_err(MemoryError::Clear)?;
        }
    }
    Ok(())
}

/// Has the host make up pages from `start` on, at most `bytes` bytes of them, and says where they end. What lies in them stays.
/// Pages that nobody touched before are dear where hosts are virtual machines themselves: so a spare touches its memory while it
/// waits, not while a copy comes.
pub fn touch(memory: &GuestRam, start: GuestAddress, bytes: u64) -> GuestAddress {
    let end = start.0.saturating_add(bytes);
    let mut pages = (start.0..end).step_by(Page::BYTES).map(GuestAddress);
    pages
        .find(|page| memory.read_obj::<u8>(*page).is_err())
        .unwrap_or(GuestAddress(end))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_touched_to_its_end_and_keeps_what_lies_in_it() {
        let memory = create(2).unwrap();
        memory.write_obj(7_u64, GuestAddress(0x1_2345)).unwrap();
        let half = touch(&memory, GuestAddress(0), 1 << 20);
        assert_eq!(half, GuestAddress(1 << 20));
        let end = touch(&memory, half, 1 << 30);
        assert_eq!(end, GuestAddress(2 << 20));
        assert_eq!(touch(&memory, end, 1 << 20), end);
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x1_2345)).unwrap(), 7);
        let file = place_of(&memory, GuestAddress(0)).unwrap().file;
        // In blocks of 512 bytes.
        assert_eq!(rustix::fs::fstat(file).unwrap().st_blocks, 2 << 20 >> 9);
    }

    #[test]
    fn memory_that_was_cleared_reads_as_zeros_everywhere_it_is_shared() {
        let memory = create(2).unwrap();
        memory.write_obj(7_u64, GuestAddress(0x1_2345)).unwrap();
        let region = memory.iter().next().unwrap();
        let file = region.file_offset().unwrap().arc().clone();
        let other = GuestMemoryMmap::<()>::from_ranges_with_files([(
            GuestAddress(0),
            2 << 20,
            Some(FileOffset::from_arc(file, 0)),
        )])
        .unwrap();
        assert_eq!(other.read_obj::<u64>(GuestAddress(0x1_2345)).unwrap(), 7);
        clear(&memory).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x1_2345)).unwrap(), 0);
        assert_eq!(other.read_obj::<u64>(GuestAddress(0x1_2345)).unwrap(), 0);
    }
}
