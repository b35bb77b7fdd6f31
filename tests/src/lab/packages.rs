//! What the lab is made of beside our own programs: Debian's QEMU, kernel, busybox, servers and some tools.
//!
//! Called first of all by `cargo xtask lab`. QEMU and the kernel come the way the plain-QEMU suite gets them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};

use crate::qemu::packages::{self, Kernel, find_program};
use crate::qemu::suite::target;

/// Programs that the lab calls or copies into its images, and the package each is in.
const TOOLS: [(&str, &str); 13] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("redis-server", "redis-server"),
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("strip", "binutils"),
    ("xz", "xz-utils"),
];

/// The same, for who follows README.
const README_TOOLS: [(&str, &str); 4] = [
    ("debootstrap", "debootstrap"),
    ("redis-cli", "redis-tools"),
    ("socat", "socat"),
    ("bash", "bash"),
];

/// The kernel of hosts and guests.
pub fn kernel() -> anyhow::Result<Kernel> {
    Kernel::find(&kernel_folder()).context(HOW)
}

/// The path of one of `TOOLS`.
pub fn tool(program: &str) -> anyhow::Result<PathBuf> {
    find_program(program).with_context(|| format!("{program} is missing: {HOW}"))
}

/// The folder with PostgreSQL's programs and libraries, those of the newest version if there are several.
pub fn postgres() -> anyhow::Result<PathBuf> {
    let versions = std::fs::read_dir(POSTGRES).into_iter().flatten();
    let folders = versions.filter_map(|entry| Some(entry.ok()?.path()));
    folders
        .filter(|folder| folder.join("bin/postgres").is_file() && folder.join("bin/pgbench").is_file())
        .max()
        .with_context(|| format!("There is no PostgreSQL in {POSTGRES} (package postgresql): {HOW}"))
}

/// What some stories need beyond what all do.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// A PostgreSQL server and its clients.
    pub postgres: bool,
    /// What makes a Debian, and what README types on a client.
    pub debootstrap: bool,
}

/// Says which program is missing.
pub fn check(needs: Needs) -> anyhow::Result<()> {
    match missing(needs).first() {
        None => kernel().map(drop),
        Some((program, package)) => bail!("{program} (package {package}) is missing: {HOW}"),
    }
}

/// Gets what is missing, as root. The kernel is unpacked into a folder and never installed.
pub fn install(needs: Needs) -> anyhow::Result<()> {
    if check(needs).is_ok() {
        return Ok(());
    }
    packages::install(&kernel_folder())?;
    let mut packages: Vec<_> = missing(needs).into_iter().map(|(_, package)| package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let status = Command::new("apt-get")
        .args(["install", "--yes", "--quiet", "--no-install-recommends"])
        .args(&packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        // A server that Debian would start at once is of no use to the lab, and would be in others' way.
        .env("RUNLEVEL", "1")
        .status()
        .context("Cannot run apt-get")?;
    if !status.success() {
        bail!("apt-get could not install {}", packages.join(", "));
    }
    check(needs)
}

fn missing(needs: Needs) -> Vec<(&'static str, &'static str)> {
    let tools = TOOLS
        .into_iter()
        .filter(|(program, _)| find_program(program).is_none());
    let readme = README_TOOLS
        .into_iter()
        .filter(|(program, _)| needs.debootstrap && find_program(program).is_none());
    let server = (needs.postgres && postgres().is_err()).then_some(("postgres", "postgresql"));
    tools.chain(readme).chain(server).collect()
}

/// The same unpacked kernel as the plain-QEMU suite's.
fn kernel_folder() -> PathBuf {
    target().join("qemu-plain")
}

/// Where Debian installs PostgreSQL, a folder for each version.
const POSTGRES: &str = "/usr/lib/postgresql";
const HOW: &str = "run `cargo xtask lab NAME --install` as root once";
