//! What `cargo xtask qemu-plain` does: see to it that everything is there, and run the story in a network of its own.
//!
//! Called by the xtask door. It fails with a sentence where something is missing; it never skips anything.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::packages;

/// Where the story finds the kernel; set by this suite.
pub const FOLDER_VARIABLE: &str = "LOCKSTEP_QEMU_FOLDER";

/// Runs the suite; with `install`, gets first what is missing.
pub fn run(install: bool) -> anyhow::Result<()> {
    let folder = folder();
    if install {
        packages::install(&folder)?;
    }
    packages::Kernel::find(&folder)?;
    packages::check_tools()?;
    build()?;

    let mut story = in_own_network()?;
    story
        .arg(cargo())
        .args([
            "test",
            "--offline",
            "--package",
            "lockstep-tests",
            "--test",
            "qemu_plain",
        ])
        .args(["--", "--ignored", "--nocapture"])
        .env(FOLDER_VARIABLE, &folder);
    let status = story.status().context("Cannot run the story")?;
    if !status.success() {
        bail!("The suite qemu-plain failed");
    }
    Ok(())
}

/// The workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this crate lies in the workspace")
        .to_owned()
}

/// Where builds go.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// An executable of this workspace.
pub fn executable(name: &str) -> PathBuf {
    target().join("debug").join(name)
}

fn folder() -> PathBuf {
    target().join("qemu-plain")
}

fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

fn build() -> anyhow::Result<()> {
    let status = Command::new(cargo())
        .args(["build", "--workspace"])
        .status()
        .context("Cannot run cargo")?;
    if !status.success() {
        bail!("The device processes do not build");
    }
    Ok(())
}

/// A command that runs what its arguments say in a new network namespace, as root or as an ordinary user.
fn in_own_network() -> anyhow::Result<Command> {
    let mut command = Command::new("unshare");
    command.arg("--net");
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let mut trial = Command::new("unshare");
    let allowed = trial.args(command.get_args()).arg("true").status();
    match allowed {
        Ok(status) if status.success() => Ok(command),
        _ => bail!("This user may not make a network namespace: run as root, or allow user namespaces"),
    }
}
