//! The place of a listening socket in the file system: taken over from a dead process, and from nobody and nothing else.
//!
//! `listener` asks before it listens for a VMM, and device processes before they listen for front-ends. Whoever listens
//! at a place already is not disturbed: looking makes no connection to a socket of another kind.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::socket;

/// Why a device process cannot listen.
#[derive(Debug, Error)]
pub enum BindError {
    /// Another process listens there.
    #[error("Another process listens at {0}: stop it or choose another path")]
    InUse(PathBuf),
    /// Not ours to remove.
    #[error("{0} exists and is not a socket: remove it or choose another path")]
    NotASocket(PathBuf),
    /// The kernel refused.
    #[error("Cannot listen at {path}: does its directory exist, and may this user write there?")]
    Os {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Makes room for a socket at `path`: one that a dead process left behind goes.
pub fn make_room(path: &Path) -> Result<(), BindError> {
    let os = |source| BindError::Os {
        path: path.to_owned(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(os(source)),
        Ok(found) if !found.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match socket::knock_at(path) {
        // Nobody has it open any more.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(os)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(os(error)),
        // Somebody, too busy to answer, or with a socket of another kind.
        Ok(()) | Err(_) => Err(BindError::InUse(path.to_owned())),
    }
}
