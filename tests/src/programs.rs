//! The programs under test. They lie beside the test that is running; one that is missing, or older than its sources, is
//! an error with the command that heals it: a story about yesterday's program proves nothing about today's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, bail, ensure};

use crate::qemu::suite::target;

/// Every program of the product.
pub const ALL: [&str; 4] = ["lockstep", "lockstep-arbiter", "vhost-net-ft", "vhost-blk-ft"];

/// The path of a program, checked to be there and up to date.
pub fn find(name: &str) -> anyhow::Result<PathBuf> {
    let dir = folder()?;
    for program in ALL {
        check(&dir, program)?;
    }
    Ok(dir.join(name))
}

/// Builds all programs as they are released and returns the path of one. Suites that measure use these. The whole
/// workspace is named because a part of it would be built with other features, and so all over again.
pub fn release(name: &str) -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--workspace"])
        .status()
        .context("Cannot run cargo")?;
    ensure!(built.success(), "The programs do not build");
    let dir = target().join("release");
    Ok(dir.join(name))
}

/// Where this build's programs lie: tests run in `deps` below it.
fn folder() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("Cannot tell where this program lies")?;
    let dir = this.parent().unwrap_or(Path::new("."));
    let dir = if dir.ends_with("deps") {
        dir.parent().unwrap_or(dir)
    } else {
        dir
    };
    Ok(dir.to_owned())
}

fn check(dir: &Path, name: &str) -> anyhow::Result<()> {
    let program = dir.join(name);
    let Ok(built) = fs::metadata(&program).and_then(|program| program.modified()) else {
        bail!("{} is missing: {}", program.display(), remedy(dir));
    };
    if let Some(source) = newer_source(&dir.join(format!("{name}.d")), built) {
        bail!("{} is older than {source}: {}", program.display(), remedy(dir));
    }
    Ok(())
}

/// A source that cargo noted for a program and that was changed after it was built. `cargo test --workspace` on a fresh
/// tree builds the programs without a note, and needs none.
fn newer_source(noted: &Path, built: SystemTime) -> Option<String> {
    let text = fs::read_to_string(noted).ok()?;
    let changed = |path: &str| fs::metadata(path).and_then(|source| source.modified()).ok();
    let mut sources = text.split_whitespace().skip(1);
    sources
        .find(|path| changed(path).is_some_and(|changed| changed > built))
        .map(str::to_owned)
}

fn remedy(dir: &Path) -> String {
    let release = if dir.ends_with("release") {
        " --release"
    } else {
        ""
    };
    format!("run `cargo build{release}` first, or `cargo test --workspace{release}`")
}
