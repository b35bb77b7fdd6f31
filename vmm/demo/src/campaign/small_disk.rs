//! A disk that can be full: a small file system of its own, in a mount namespace that only this process and its
//! children see.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Lets this process mount what it likes where nobody else sees it. Must be called before it has a second thread.
pub(super) fn allow() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("Cannot make a mount namespace; run the campaign as root")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .context("Cannot keep mounts to this process")
}

/// A mounted small disk; unmounted when dropped.
pub(super) struct SmallDisk {
    dir: PathBuf,
}

/// Mounts an empty one at `dir`.
pub(super) fn make(dir: &Path) -> anyhow::Result<SmallDisk> {
    fs::create_dir_all(dir).with_context(|| format!("Cannot make {}", dir.display()))?;
    mount(Some("lockstep"), dir, Some("tmpfs"), MsFlags::empty(), Some(SIZE))
        .with_context(|| format!("Cannot mount a file system at {}", dir.display()))?;
    Ok(SmallDisk { dir: dir.into() })
}

impl SmallDisk {
    /// Unmounts it, but leaves the logs that were written there.
    pub(super) fn keep_logs(self) -> anyhow::Result<()> {
        let dir = self.dir.clone();
        let mut logs = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == "log" || end == "toml") {
                logs.push((path.clone(), fs::read(&path)?));
            }
        }
        drop(self);
        for (path, text) in logs {
            fs::write(&path, text).with_context(|| format!("Cannot keep {}", path.display()))?;
        }
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whoever still has a file open there keeps it alive until it is closed.
        let _ = umount2(&self.dir, MntFlags::MNT_DETACH);
    }
}

/// Takes all the room that is left on the disk that `dir` is on.
pub(super) fn fill(dir: &Path) -> anyhow::Result<()> {
    let mut filler = File::create(filler(dir)).context("Cannot fill the disk")?;
    let piece = vec![0; PIECE];
    // The end of the room is the only way out, and it is what was wanted.
    while filler.write_all(&piece).is_ok() {}
    Ok(())
}

/// Gives it back.
pub(super) fn free(dir: &Path) -> anyhow::Result<()> {
    fs::remove_file(filler(dir)).context("Cannot free the disk")
}

fn filler(dir: &Path) -> PathBuf {
    dir.join("filler")
}

/// Room for what a life writes, and little enough to be filled in no time.
const SIZE: &str = "size=192m";
const PIECE: usize = 4096;
