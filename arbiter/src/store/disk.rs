//! The steps that the file store takes on a disk, one system call or so each, and the real disk.
//!
//! The store goes through this seam so that a test can stop it after any step, fail any step, interleave the
//! steps of several claimants, and cut the power of a modelled disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use super::term_file::MAX_TERM_FILE;

/// What a disk can do. Every method is one step: after a crash it has happened or not.
pub trait Disk: Send + Sync {
    /// A file that was created and is still open.
    type Draft;

    /// Makes a directory; one that is there already is right, too.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes what a directory lists survive a power cut.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Calls `each` with every name in the directory.
    fn names(&self, dir: &Path, each: &mut dyn FnMut(&str)) -> io::Result<()>;

    /// How long ago the file was last changed, by the clocks of this host and of the disk's.
    fn age(&self, path: &Path) -> io::Result<Duration>;

    /// The file's bytes, but not many more than [`MAX_TERM_FILE`].
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Creates an empty file that must not be there yet.
    fn create(&self, path: &Path) -> io::Result<Self::Draft>;

    /// Writes all bytes.
    fn write(&self, draft: &mut Self::Draft, bytes: &[u8]) -> io::Result<()>;

    /// Makes the file's bytes survive a power cut.
    fn sync(&self, draft: &Self::Draft) -> io::Result<()>;

    /// Gives the file a second name, which must not be there yet: atomic between all hosts.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Takes one name away.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// The disk of this host, or one that it has mounted.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    type Draft = File;

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            outcome => outcome,
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn names(&self, dir: &Path, each: &mut dyn FnMut(&str)) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            // A name that is no text is none of ours.
            if let Some(name) = entry?.file_name().to_str() {
                each(name);
            }
        }
        Ok(())
    }

    fn age(&self, path: &Path) -> io::Result<Duration> {
        let changed = fs::symlink_metadata(path)?.modified()?;
        // From the future is young.
        Ok(changed.elapsed().unwrap_or(Duration::ZERO))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?
            .take(MAX_TERM_FILE as u64 + 1)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).open(path)
    }

    fn write(&self, draft: &mut File, bytes: &[u8]) -> io::Result<()> {
        draft.write_all(bytes)
    }

    fn sync(&self, draft: &File) -> io::Result<()> {
        draft.sync_all()
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}
