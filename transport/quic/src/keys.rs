//! Makes the certificate and the private key of one node or arbiter, as files.
//!
//! `lockstep keys` calls it. It never overwrites a file unless told to, never leaves a key that others may read,
//! and never leaves half a file: each is written beside its place and renamed or linked into it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::dates::Validity;
use crate::identity::{Fingerprint, Identity, IdentityError};

/// How long a certificate of `lockstep keys` is good, unless somebody asks for less.
pub const DEFAULT_YEARS: u16 = 10;

const KEY_MODE: u32 = 0o600;
const CERTIFICATE_MODE: u32 = 0o644;

/// Where the files are, and what to compare by eye.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPaths {
    /// To be copied to the other hosts.
    pub certificate: PathBuf,
    /// To stay here.
    pub key: PathBuf,
    /// Of the certificate.
    pub fingerprint: Fingerprint,
}

/// Whether files that are there already may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Refuse, and change nothing.
    Keep,
    /// Replace them; peers that pinned the old certificate will refuse the new one.
    Replace,
}

/// Makes `dir/name.crt` and `dir/name.key`. The directory is made if it is missing.
pub fn write_keys(
    dir: &Path,
    name: &str,
    validity: Validity,
    existing: Existing,
) -> Result<KeyPaths, KeysError> {
    let fail = |path: &Path, source| KeysError::Write {
        path: path.to_owned(),
        source,
    };
    check_name(name)?;
    fs::create_dir_all(dir).map_err(|source| fail(dir, source))?;
    let certificate = dir.join(format!("{name}.crt"));
    let key = dir.join(format!("{name}.key"));
    if existing == Existing::Keep {
        for path in [&certificate, &key] {
            if path.symlink_metadata().is_ok() {
                return Err(KeysError::Exists { path: path.clone() });
            }
        }
    }
    let pems = Identity::generate(name, validity)?;
    let fingerprint = Identity::from_pems(name, &pems)?.fingerprint();
    // The key first: a certificate without its key would look usable to the other hosts.
    place(&key, pems.key.as_bytes(), KEY_MODE, existing)?;
    place(
        &certificate,
        pems.certificate.as_bytes(),
        CERTIFICATE_MODE,
        existing,
    )?;
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| fail(dir, source))?;
    Ok(KeyPaths {
        certificate,
        key,
        fingerprint,
    })
}

/// Why the files were not made.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The name would not be a plain file name.
    #[error(
        "{name:?} is no name for a key: use 1 to 64 of a-z, A-Z, 0-9, '.', '_' and '-', not starting with '.'"
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// A file is there already.
    #[error("{} exists already; peers may have pinned it, so it is replaced only with --force", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("Cannot write {}", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The certificate could not be made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

fn check_name(name: &str) -> Result<(), KeysError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=64).contains(&name.len()) && !name.starts_with('.') && name.chars().all(plain) {
        return Ok(());
    }
    Err(KeysError::Name {
        name: name.to_owned(),
    })
}

/// Puts a whole file at `path` or nothing; with [`Existing::Keep`] a file that appeared meanwhile wins.
fn place(path: &Path, bytes: &[u8], mode: u32, existing: Existing) -> Result<(), KeysError> {
    let fail = |source| KeysError::Write {
        path: path.to_owned(),
        source,
    };
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}.tmp", std::process::id()));
    let draft = PathBuf::from(draft);
    let placed = write_draft(&draft, bytes, mode).and_then(|()| match existing {
        Existing::Replace => fs::rename(&draft, path),
        Existing::Keep => fs::hard_link(&draft, path),
    });
    // After a rename there is no draft any more, and a draft that stays behind harms nobody.
    let _ = fs::remove_file(&draft);
    placed.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => KeysError::Exists {
            path: path.to_owned(),
        },
        _ => fail(source),
    })
}

fn write_draft(draft: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let _ = fs::remove_file(draft);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(draft)?;
    file.write_all(bytes)?;
    file.sync_all()
}
