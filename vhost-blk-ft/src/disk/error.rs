//! Why a disk cannot be opened: every sentence names it and says what to do. Made by `disk.rs`.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::limits::SECTOR;

/// Why there is no disk.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Nothing there.
    #[error("There is no disk at {0}: make one with `truncate -s 1G {0}` or correct --disk")]
    Missing(PathBuf),
    /// Not for us.
    #[error("No permission to open {0}: run as a user who may, or use --read-only")]
    Permission(PathBuf),
    /// A directory, a pipe.
    #[error("{0} is neither a regular file nor a block device")]
    WrongKind(PathBuf),
    /// The last sector is not whole.
    #[error(
        "{path} has {bytes} bytes, which is not a positive multiple of {SECTOR}: resize it with `truncate`"
    )]
    Size {
        /// The disk.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// Somebody else has it.
    #[error("{0} is in use by another process: stop that one first")]
    Locked(PathBuf),
    /// Perhaps the other host has it.
    #[error(
        "{0} is in use by another process: stop that one first; of a mirrored disk each host has an image of its own"
    )]
    ImageLocked(PathBuf),
    /// Anything else.
    #[error("Cannot open {path}")]
    Os {
        /// The disk.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}
