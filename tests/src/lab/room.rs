//! The room that a lab plays in: a network namespace for its wires and a process namespace for everything it starts.
//! When the lab's process ends, however it ends, the kernel ends all others in the room, and the wires are gone with the
//! last of them. Two labs are two rooms.

use std::convert::Infallible;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigSet, Signal};
use tempfile::TempDir;

/// Set for a lab that is in its room.
const INSIDE: &str = "LOCKSTEP_LAB_INSIDE";

/// Whether this process is in a room already.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Starts this program again, with the same arguments, in a room of its own. Comes back only if that fails.
pub fn enter() -> anyhow::Result<Infallible> {
    let mut options = vec!["--net", "--pid", "--fork", "--kill-child"];
    if !nix::unistd::geteuid().is_root() {
        options.extend(["--user", "--map-root-user"]);
    }
    let trial = Command::new("unshare")
        .args(&options)
        .arg("true")
        .stderr(Stdio::null())
        .status();
    if !trial.is_ok_and(|status| status.success()) {
        bail!("This user may not make namespaces: run as root, or see what `lockstep check` says about them");
    }
    let this = std::env::current_exe().context("Cannot tell where this program lies")?;
    let failed = Command::new("unshare")
        .args(&options)
        .arg(this)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(failed).context("Cannot run unshare")
}

/// Ends the room when somebody asks this process to stop, and after `limit` at the latest. Called before there is any
/// other thread, so that all of them leave the signals to this one.
pub fn guard(limit: Duration) -> anyhow::Result<()> {
    // The first process of a process namespace gets no signal that it does not ask for.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("Cannot block signals")?;
    let leave = |why: String| -> ! {
        eprintln!("cargo xtask: {why}; everything that the lab started is gone");
        std::process::exit(1)
    };
    std::thread::spawn(move || match signals.wait() {
        Ok(signal) => leave(format!("Stopped by {signal}")),
        Err(error) => leave(format!("Cannot wait for signals: {error}")),
    });
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        leave(format!("The lab took longer than {} s", limit.as_secs()))
    });
    Ok(())
}

/// A folder for one lab, removed with this value. What killed labs left behind is removed first.
#[derive(Debug)]
pub struct Folder {
    folder: TempDir,
    _lock: Flock<File>,
}

impl Folder {
    /// Makes one below `base`.
    pub fn new(base: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(base).with_context(|| format!("Cannot make {}", base.display()))?;
        sweep(base)?;
        let folder = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(base)
            .context("Cannot make a folder")?;
        let lock = lock(folder.path()).context("Cannot lock the folder of a new lab")?;
        Ok(Self { folder, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Keeps every console, log and configuration in `to`, instead of what was kept there before.
    pub fn keep_texts(&self, to: &Path) -> anyhow::Result<()> {
        if to.exists() {
            fs::remove_dir_all(to)?;
        }
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(self.path().join(&folder))? {
                let entry = entry?;
                let within = folder.join(entry.file_name());
                if entry.file_type()?.is_dir() {
                    folders.push(within);
                } else if entry.metadata()?.len() <= TEXT_MAX {
                    fs::create_dir_all(to.join(&folder))?;
                    fs::copy(entry.path(), to.join(within))?;
                }
            }
        }
        Ok(())
    }
}

fn sweep(base: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(base)? {
        let path = entry?.path();
        let of_a_lab = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        // Whoever holds the lock is at work there.
        if of_a_lab && lock(&path).is_some() {
            fs::remove_dir_all(&path).with_context(|| format!("Cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn lock(folder: &Path) -> Option<Flock<File>> {
    let file = File::create(folder.join("lock")).ok()?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()
}

const PREFIX: &str = "run-";
/// Larger files are images and disks.
const TEXT_MAX: u64 = 4 << 20;
