//! The disk itself: a raw file or a block device, opened once, and the system calls on it.
//!
//! Used by `complete.rs` (reads), `change.rs` (everything that changes it, one call at a time), `plain.rs` (writes and
//! flushes for others) and `submit.rs` and `held.rs` (flushes). It knows nothing of guests, gates or queues.
//!
//! A disk that two hosts share is written with O_DIRECT (decided 2026-11-23). A write into the page cache leaves this
//! host whenever the kernel likes, which may be after the lease is over; and a write that was completed to the guest
//! must survive this host, because the guest does. Measured on ext4 over virtio: a direct write of 512 bytes 45 us, a
//! direct write and fdatasync 90 us, a cached write and fdatasync 95 us; so it costs nothing that is not paid anyway.
//! What is no direct write (odd places, discards, zeros that the storage makes) is synced before it is complete.
//!
//! A mirrored disk is written into the page cache, as any VM's own disk is (decided 2026-11-25): the host that goes on has
//! an image of its own, and a flush is what puts it on stable storage.

mod error;

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use lockstep_image::PairingId;
use rustix::fs::{Advice, AtFlags, FallocateFlags, FlockOperation, OFlags, StatxFlags};
use rustix::io::Errno;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

pub use self::error::OpenError;
use crate::changes::{self, Changes};
use crate::limits::{SECTOR, SERIAL_BYTES};
use crate::request::Extent;

/// Who else may have the disk open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody who writes.
    Alone,
    /// The other host of the pair, which keeps its hands off while we are live.
    Shared,
    /// Nobody who writes. The other host has an image of its own, and the two stay equal.
    Mirrored,
}

/// How to open a disk.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// The file or device.
    pub path: PathBuf,
    /// The guest may not write.
    pub read_only: bool,
    /// Who else may use it.
    pub sharing: Sharing,
    /// What the guest is told that the disk is called.
    pub serial: String,
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    cached: File,
    direct: Option<Direct>,
    bytes: u64,
    block: u32,
    sharing: Sharing,
    read_only: bool,
    serial: [u8; SERIAL_BYTES],
    /// Something was written that no flush covers yet.
    dirty: bool,
    /// Nobody will ask for a flush.
    write_through: bool,
    /// What changes on an image of one's own.
    changes: Option<Changes>,
}

/// The same disk, past the page cache.
#[derive(Debug)]
struct Direct {
    file: File,
    /// Offsets and lengths must be multiples of this.
    alignment: u64,
}

impl Disk {
    /// Opens, checks and locks it.
    pub fn open(options: &DiskOptions) -> Result<Self, OpenError> {
        let path = &options.path;
        let os = |source| OpenError::Os {
            path: path.clone(),
            source,
        };
        let mut cached = open(path, options.read_only, OFlags::empty())?;
        let kind = cached.metadata().map_err(os)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::WrongKind(path.clone()));
        }
        lock(&cached, options)?;
        let bytes = cached.seek(SeekFrom::End(0)).map_err(os)?;
        if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
            return Err(OpenError::Size {
                path: path.clone(),
                bytes,
            });
        }
        let direct = match (options.sharing, options.read_only) {
            (Sharing::Shared, false) => Direct::open(path, &cached),
            _ => None,
        };
        let changes = match (options.sharing, options.read_only) {
            (Sharing::Mirrored, false) => {
                Some(Changes::of(cached.try_clone().map_err(os)?, path, bytes).map_err(os)?)
            }
            (_, true) => None,
            (Sharing::Alone | Sharing::Shared, false) => {
                changes::forget(path).map_err(os)?;
                None
            }
        };
        let block = direct.as_ref().map_or(SECTOR, |direct| direct.alignment);
        Ok(Self {
            cached,
            direct,
            bytes,
            block: u32::try_from(block).expect("an alignment of I/O fits 32 bits"),
            sharing: options.sharing,
            read_only: options.read_only,
            serial: pad_serial(&options.serial),
            dirty: false,
            write_through: false,
            changes,
        })
    }

    /// How long it is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The block size that guests should write in.
    pub fn block_size(&self) -> u32 {
        self.block
    }

    /// Must nobody write?
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Is it this host's own image of a disk that each host of the pair has one of?
    pub fn is_mirrored(&self) -> bool {
        self.sharing == Sharing::Mirrored
    }

    /// Its name, padded with zeros.
    pub fn serial(&self) -> &[u8; SERIAL_BYTES] {
        &self.serial
    }

    /// Fills `room` with what lies at `at`, straight from the kernel.
    pub fn read(&mut self, at: u64, room: &mut [VolatileSlice<'_>]) -> io::Result<()> {
        self.cached.seek(SeekFrom::Start(at))?;
        room.iter_mut()
            .try_for_each(|slice| self.cached.read_exact_volatile(slice).map_err(to_io))
    }

    /// Writes all of `data` at `at`, straight from where it lies: nobody has to be asked in between.
    pub fn write(&mut self, at: u64, data: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.dirty = true;
        self.cached.seek(SeekFrom::Start(at))?;
        data.iter()
            .try_for_each(|slice| self.cached.write_all_volatile(slice).map_err(to_io))?;
        self.settle()
    }

    /// Writes some of `bytes` at `at` with one system call; says how many. What was written to a shared disk has left this
    /// host when this returns.
    pub fn write_some(&mut self, at: u64, bytes: &[u8]) -> io::Result<usize> {
        self.before_change(at, bytes.len() as u64)?;
        if let Some(direct) = &self.direct
            && direct.takes(at, bytes)
        {
            return direct.file.write_at(bytes, at);
        }
        let written = self.cached.write_at(bytes, at)?;
        self.settle()?;
        Ok(written)
    }

    /// Gives the blocks of an extent back. Storage that cannot is no failure: a discard is only advice.
    pub fn discard(&mut self, extent: Extent) -> io::Result<()> {
        self.before_change(extent.at, extent.bytes)?;
        self.fallocate(FallocateFlags::PUNCH_HOLE, extent)?;
        self.settle()
    }

    /// Lets the storage make an extent read as zeros. `false`: it cannot, somebody has to write them.
    pub fn zero(&mut self, extent: Extent, unmap: bool) -> io::Result<bool> {
        self.before_change(extent.at, extent.bytes)?;
        let freed = unmap && self.fallocate(FallocateFlags::PUNCH_HOLE, extent)?;
        let zeroed = freed || self.fallocate(FallocateFlags::ZERO_RANGE, extent)?;
        self.settle()?;
        Ok(zeroed)
    }

    /// Returns when everything written so far is on stable storage.
    pub fn flush(&mut self) -> io::Result<()> {
        self.sync()?;
        if let Some(changes) = &mut self.changes {
            changes.flushed();
        }
        Ok(())
    }

    /// Whether whoever writes will never ask for a flush: then a change is complete only when it stays.
    pub fn set_write_through(&mut self, write_through: bool) {
        self.write_through = write_through;
    }

    /// What changes on an image of one's own is noted here.
    pub fn changes(&mut self) -> Option<&mut Changes> {
        self.changes.as_mut()
    }

    /// The other host's image is equal to this one, and gets the same changes from now on. Neither need be on stable
    /// storage yet.
    pub fn begin_pairing(&mut self, id: PairingId) -> io::Result<()> {
        self.dirty = true;
        self.changes
            .as_mut()
            .map_or(Ok(()), |changes| changes.begin_pairing(id))
    }

    /// This image may change alone from now on.
    pub fn end_pairing(&mut self) {
        if let Some(changes) = &mut self.changes {
            changes.end_pairing();
        }
    }

    /// The next part at or behind `at` that may hold something else than zeros; `None` when there is none.
    pub fn next_data(&self, at: u64) -> io::Result<Option<Extent>> {
        use rustix::fs::SeekFrom::{Data, Hole};
        let (start, end) = match rustix::fs::seek(&self.cached, Data(at)) {
            Ok(start) => (
                start,
                rustix::fs::seek(&self.cached, Hole(start))?.min(self.bytes),
            ),
            Err(Errno::NXIO) => return Ok(None),
            // Block devices know no holes (Linux 6.18): all of it is data.
            Err(Errno::INVAL) => (at, self.bytes),
            Err(error) => return Err(error.into()),
        };
        Ok((start < end).then(|| Extent {
            at: start,
            bytes: end - start,
        }))
    }

    /// Fills `room` with what lies at `at`.
    pub fn read_plain(&self, at: u64, room: &mut [u8]) -> io::Result<()> {
        self.cached.read_exact_at(room, at)
    }

    /// Forgets what this host has cached: the other host has written meanwhile.
    pub fn forget_cached(&self) {
        // Advice; where it is not taken, the file system keeps hosts coherent or there is only one of them.
        let _ = rustix::fs::fadvise(&self.cached, 0, None, Advice::DontNeed);
    }

    /// A change went through the page cache, or is one of the file system's own notes. Where nobody asks for a flush, or
    /// where the guest goes on when this host dies, that is not enough to call it complete.
    fn settle(&mut self) -> io::Result<()> {
        match self.write_through || self.sharing == Sharing::Shared {
            true => self.sync(),
            false => Ok(()),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.dirty {
            self.cached.sync_data()?;
            self.dirty = false;
        }
        Ok(())
    }

    fn before_change(&mut self, at: u64, bytes: u64) -> io::Result<()> {
        self.dirty = true;
        self.changes
            .as_mut()
            .map_or(Ok(()), |changes| changes.before(at, bytes))
    }

    fn fallocate(&self, how: FallocateFlags, extent: Extent) -> io::Result<bool> {
        let mode = how | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.cached, mode, extent.at, extent.bytes) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Direct {
    /// `None` where the file system does not do it, which is said once.
    fn open(path: &Path, cached: &File) -> Option<Self> {
        match open(path, false, OFlags::DIRECT) {
            Ok(file) => Some(Self {
                file,
                alignment: alignment_of(cached),
            }),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "The disk's file system does not do direct I/O; every write is flushed instead, and a host that \
                     is suspended in the middle of one may still write after its lease"
                );
                None
            }
        }
    }

    fn takes(&self, at: u64, bytes: &[u8]) -> bool {
        let memory = bytes.as_ptr().addr() as u64;
        [at, bytes.len() as u64, memory]
            .iter()
            .all(|place| place.is_multiple_of(self.alignment))
    }
}

/// What direct I/O on this disk wants offsets and lengths to be multiples of.
fn alignment_of(file: &File) -> u64 {
    let logical = rustix::fs::ioctl_blksszget(file).map(u64::from);
    let asked = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        .map(|stat| u64::from(stat.stx_dio_offset_align));
    match (logical, asked) {
        (Ok(block), _) | (Err(_), Ok(block)) if block >= SECTOR => block,
        _ => SECTOR,
    }
}

fn open(path: &Path, read_only: bool, flags: OFlags) -> Result<File, OpenError> {
    let flags = i32::try_from(flags.bits()).expect("open flags are small");
    OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(flags)
        .open(path)
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => OpenError::Missing(path.to_owned()),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                OpenError::Permission(path.to_owned())
            }
            io::ErrorKind::IsADirectory => OpenError::WrongKind(path.to_owned()),
            _ => OpenError::Os {
                path: path.to_owned(),
                source,
            },
        })
}

/// Two unprotected VMs on one disk would destroy it; the two hosts of a pair share their lock.
fn lock(file: &File, options: &DiskOptions) -> Result<(), OpenError> {
    let how = match (options.sharing, options.read_only) {
        (Sharing::Alone | Sharing::Mirrored, false) => FlockOperation::NonBlockingLockExclusive,
        _ => FlockOperation::NonBlockingLockShared,
    };
    match rustix::fs::flock(file, how) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) if options.sharing == Sharing::Mirrored => {
            Err(OpenError::ImageLocked(options.path.clone()))
        }
        Err(Errno::WOULDBLOCK) => Err(OpenError::Locked(options.path.clone())),
        Err(error) => {
            tracing::warn!(%error, "The disk cannot be locked on its file system; nobody else may use it");
            Ok(())
        }
    }
}

fn pad_serial(serial: &str) -> [u8; SERIAL_BYTES] {
    let mut padded = [0; SERIAL_BYTES];
    let length = serial.floor_char_boundary(SERIAL_BYTES);
    padded[..length].copy_from_slice(&serial.as_bytes()[..length]);
    padded
}

fn to_io(error: VolatileMemoryError) -> io::Error {
    match error {
        VolatileMemoryError::IOError(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests;
