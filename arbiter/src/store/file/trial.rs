//! The trial of a directory: whether it can keep terms.
//!
//! `lockstep-arbiter check` and the start of the service make it. Its files have names that are no VM's, so it
//! never touches a term.

use std::hash::{BuildHasher, Hasher, RandomState};

use super::{DRAFT_LIFETIME, FileStore, LINK, MAX_CLEARED, SYNC_DIR, told};
use crate::store::StoreError;
use crate::store::disk::Disk;

const TRIAL_PREFIX: &str = ".lockstep-check-";

impl<D: Disk> FileStore<D> {
    /// Does everything that a claim does, under a name that is no term's, and leaves nothing behind.
    pub fn try_out(&self) -> Result<(), StoreError> {
        self.clear_trials();
        let name = trial_name();
        let draft = self.dir.join(&name);
        let second = self.dir.join(format!("{name}.link"));
        let fail = |doing, source| told(source, doing, &draft, &self.dir);
        let tried = self.write_draft(&draft, b"lockstep", &self.dir).and_then(|()| {
            self.disk
                .link(&draft, &second)
                .map_err(|source| fail(LINK, source))?;
            self.disk
                .sync_dir(&self.dir)
                .map_err(|source| fail(SYNC_DIR, source))
        });
        let _ = self.disk.remove(&second);
        let _ = self.disk.remove(&draft);
        tried
    }

    /// Takes away what trials that were killed long ago have left, so that a service that is killed again and
    /// again does not fill the directory.
    fn clear_trials(&self) {
        let mut left = Vec::new();
        // A directory that cannot be listed is the business of the trial itself.
        let _ = self.disk.names(&self.dir, &mut |name| {
            if name.starts_with(TRIAL_PREFIX) && left.len() < MAX_CLEARED {
                left.push(self.dir.join(name));
            }
        });
        for path in left {
            if self.disk.age(&path).is_ok_and(|age| age > DRAFT_LIFETIME) {
                let _ = self.disk.remove(&path);
            }
        }
    }
}

/// A name that no other trial has or had. Process numbers do not tell hosts or containers apart: in a container
/// every start may have number 1. The number is for people who wonder what left the file.
fn trial_name() -> String {
    format!("{TRIAL_PREFIX}{}.{:016x}", std::process::id(), random())
}

/// 64 bits that the system's source of randomness has gone into. Not by `rand`: the copies of the store that the
/// mutants of the protocol are hunted in (`tests/src/mutants/workshop.rs`) are built without it.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
