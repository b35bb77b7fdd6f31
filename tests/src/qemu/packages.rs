//! Where QEMU, busybox and the guest's kernel come from: Debian's own packages.
//!
//! Called by the suite. The kernel is never installed on this machine: its package is only unpacked into a folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// The meta package that names today's kernel.
const KERNEL: &str = "linux-image-cloud-amd64";

/// Programs that the story calls, and the package each is in.
const TOOLS: [(&str, &str); 5] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
];

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What QEMU boots.
    pub image: PathBuf,
    /// `lib/modules/RELEASE`.
    pub modules: PathBuf,
}

impl Kernel {
    /// The kernel that was unpacked into `folder`.
    pub fn find(folder: &Path) -> anyhow::Result<Self> {
        let missing = || "There is no guest kernel: run `cargo xtask qemu-plain --install` as root";
        let image = only_entry(&folder.join("kernel/boot"), "vmlinuz-").with_context(missing)?;
        let modules = only_entry(&folder.join("kernel/lib/modules"), "").with_context(missing)?;
        Ok(Self { image, modules })
    }

    /// A module of the kernel, wherever it lies.
    pub fn module(&self, name: &str) -> anyhow::Result<PathBuf> {
        let mut folders = vec![self.modules.join("kernel")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path
                    .file_name()
                    .is_some_and(|file| file.to_string_lossy().starts_with(name))
                {
                    return Ok(path);
                }
            }
        }
        bail!("The kernel's package has no module {name}")
    }
}

/// Says which program is missing.
pub fn check_tools() -> anyhow::Result<()> {
    for (program, package) in TOOLS {
        if find_program(program).is_none() {
            bail!(
                "{program} is missing: run `cargo xtask qemu-plain --install` as root, or install {package}"
            );
        }
    }
    Ok(())
}

/// Where a program lies.
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// Gets what is missing, as root.
pub fn install(folder: &Path) -> anyhow::Result<()> {
    if check_tools().is_ok() && Kernel::find(folder).is_ok() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("Only root can install packages: run `cargo xtask qemu-plain --install` as root once");
    }
    run(Command::new("apt-get").args(["update", "--quiet"]))?;
    if check_tools().is_err() {
        install_tools()?;
    }
    if Kernel::find(folder).is_err() {
        unpack_kernel(folder)?;
    }
    Ok(())
}

fn install_tools() -> anyhow::Result<()> {
    // qemu-utils of another release than QEMU itself breaks it; both come in the version that QEMU has here.
    let qemu = output(Command::new("apt-cache").args(["policy", "qemu-system-x86"]))?;
    let version = qemu
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))
        .context("There is no package qemu-system-x86 for this system")?;
    let pinned = ["qemu-system-x86", "qemu-utils"].map(|package| format!("{package}={version}"));
    run(Command::new("apt-get")
        .args([
            "install",
            "--yes",
            "--quiet",
            "--no-install-recommends",
            "--allow-downgrades",
        ])
        .args(pinned)
        .args(["busybox-static", "cpio", "iproute2", "util-linux"])
        .env("DEBIAN_FRONTEND", "noninteractive"))
}

fn unpack_kernel(folder: &Path) -> anyhow::Result<()> {
    let depends = output(Command::new("apt-cache").args(["depends", KERNEL]))?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .with_context(|| format!("There is no package {KERNEL} for this system"))?;
    let unpacked = folder.join("kernel");
    let download = folder.join("download");
    for stale in [&unpacked, &download] {
        if stale.exists() {
            std::fs::remove_dir_all(stale)?;
        }
    }
    std::fs::create_dir_all(&download)?;
    run(Command::new("apt-get")
        .args(["download", "--quiet", package])
        .current_dir(&download))?;
    let archive = only_entry(&download, package)?;
    run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&unpacked))
}

/// The one entry of a folder whose name begins like this.
fn only_entry(folder: &Path, beginning: &str) -> anyhow::Result<PathBuf> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("Cannot read {}", folder.display()))?;
    let named = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(beginning))
        .map(|entry| entry.path())
        .collect::<Vec<_>>();
    match <[PathBuf; 1]>::try_from(named) {
        Ok([path]) => Ok(path),
        Err(found) => bail!(
            "{} has {} entries named {beginning}*, not one",
            folder.display(),
            found.len()
        ),
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .status()
        .with_context(|| format!("Cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .output()
        .with_context(|| format!("Cannot run {command:?}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
