//! Where terms are kept. A store makes the rule of [`register`](crate::register) durable and atomic between all
//! who share it; [`mod@file`] is the one that there is.
//!
//! The service and the client ask a store. A store answers a claim only when the answer would survive a power
//! cut, and never answers from anything but what it has just read.

pub mod disk;
pub mod file;
pub mod term_file;

use std::io;
use std::path::PathBuf;

use lockstep_protocol::ids::{Holder, Term};
use lockstep_protocol::takeover::Verdict;

use crate::register::{Tenure, VmName};

/// A durable register for every VM.
pub trait Store: Send + Sync {
    /// The newest term of `vm`, or none before its first.
    fn read(&self, vm: &VmName) -> Result<Option<Tenure>, StoreError>;

    /// Claims the term after `expected` for `me`. Safe to call again with the same arguments after any error,
    /// and after any crash.
    fn claim(&self, vm: &VmName, expected: Term, me: &Holder) -> Result<Verdict, StoreError>;
}

/// Why a store has no answer. No error means that the claim was lost: it may even have been won, which asking
/// again will show.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory is not there.
    #[error("There is no directory {}; is the shared disk mounted?", dir.display())]
    Missing {
        /// The directory.
        dir: PathBuf,
    },
    /// Something else has the directory's name.
    #[error("{} is not a directory", dir.display())]
    NotADirectory {
        /// The path.
        dir: PathBuf,
    },
    /// This process may not write there.
    #[error("Cannot write in {}; let this user write to it, and mount it writable", dir.display())]
    NotWritable {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no room.
    #[error("The disk of {} is full; nothing was changed", dir.display())]
    Full {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file system cannot do what the store relies on.
    #[error("The file system of {} has no hard links; use NFS, GFS2, OCFS2, ext4 or xfs", dir.display())]
    NoHardLinks {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A term file is not one that this program wrote.
    #[error("The term file {} is damaged: {reason}; restore it, or find out who changed it, by hand", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The claimant knows a later term than the register.
    #[error(
        "Term {expected} of {vm} was never handed out here (the newest is {newest}): this is another register \
         or an old copy; is the shared disk mounted?"
    )]
    NeverHandedOut {
        /// Whose term.
        vm: VmName,
        /// What the claimant believes to be the newest.
        expected: Term,
        /// What is the newest.
        newest: Term,
    },
    /// Anything else that a disk can say.
    #[error("Cannot {doing} {}", path.display())]
    Io {
        /// The step that failed.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl StoreError {
    /// Whether asking again can help. A disk that is not mounted, not writable or full may be so in a minute,
    /// and until then the claimant loses nothing by waiting.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Missing { .. }
            | Self::NotWritable { .. }
            | Self::Full { .. }
            | Self::NeverHandedOut { .. }
            | Self::Io { .. } => true,
            Self::NotADirectory { .. } | Self::NoHardLinks { .. } | Self::Damaged { .. } => false,
        }
    }
}
