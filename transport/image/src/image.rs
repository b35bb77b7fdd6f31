//! Bytes of an image, for whoever copies it to another host or takes it in. What they mean is nobody's business here; that
//! the map is told before anything changes is the caller's.

use crate::blocks::{Block, Grid};
use rustix::fs::SeekFrom::{Data, Hole};
use rustix::fs::{FallocateFlags, fallocate, seek};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Zeros are written in pieces of so many bytes where storage cannot make a hole.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// An open image: a file or a block device.
#[derive(Debug)]
pub struct ImageFile {
    file: File,
    grid: Grid,
}

impl ImageFile {
    /// Opens an image to read it.
    ///
    /// # Errors
    /// When it is not there, or may not be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of(File::open(path)?)
    }

    /// Opens an image to write it, too.
    ///
    /// # Errors
    /// When it is not there, or may not be written.
    pub fn open_to_write(path: &Path) -> io::Result<Self> {
        Self::of(OpenOptions::new().read(true).write(true).open(path)?)
    }

    fn of(mut file: File) -> io::Result<Self> {
        let bytes = file.seek(SeekFrom::End(0))?;
        Ok(Self {
            file,
            grid: Grid::of(bytes),
        })
    }

    /// The file, for its map.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// How it is cut into blocks.
    #[must_use]
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// The blocks that may hold something else than zeros, in ascending order.
    ///
    /// # Errors
    /// When the file system does not tell.
    pub fn allocated(&self) -> io::Result<Vec<Block>> {
        let mut blocks = BTreeSet::new();
        let mut at = 0;
        while at < self.grid.image_bytes() {
            let (start, end) = match seek(&self.file, Data(at)) {
                Ok(start) => (start, seek(&self.file, Hole(start))?),
                Err(Errno::NXIO) => break,
                // Block devices know no holes (Linux 6.18): all of it is data.
                Err(Errno::INVAL) => (at, self.grid.image_bytes()),
                Err(error) => return Err(error.into()),
            };
            blocks.extend(self.grid.touched(start, end - start));
            at = end;
        }
        Ok(blocks.into_iter().collect())
    }

    /// Fills `room` with what lies at `at`.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn read(&self, at: u64, room: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(room, at)
    }

    /// Puts `bytes` at `at`.
    ///
    /// # Errors
    /// When the storage fails, or they do not lie in the image.
    pub fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.check(at, bytes.len() as u64)?;
        self.file.write_all_at(bytes, at)
    }

    /// Makes `bytes` at `at` read as zeros, as a hole where storage knows such.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn zero(&self, at: u64, bytes: u64) -> io::Result<()> {
        self.check(at, bytes)?;
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, how, at, bytes) {
            Ok(()) => return Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
        let end = at + bytes;
        let mut at = at;
        while at < end {
            let count = usize::try_from(end - at).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
            self.file.write_all_at(&ZEROS[..count], at)?;
            at += count as u64;
        }
        Ok(())
    }

    /// Returns when everything that was written is on stable storage.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn check(&self, at: u64, bytes: u64) -> io::Result<()> {
        match at.checked_add(bytes) {
            Some(end) if end <= self.grid.image_bytes() => Ok(()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}
