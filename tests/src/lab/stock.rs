//! The lab's guests under a stock QEMU, without Lockstep and without hosts: how a disk is prepared before a story, and what
//! a guest finds on it after one. `postgres_image.rs` calls it; nothing protected ever passes through here.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use super::packages::tool;
use crate::qemu::packages::Kernel;
use crate::qemu::processes::Process;

/// What is booted.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The guest's kernel.
    pub kernel: &'a Kernel,
    /// The file system that it starts from.
    pub initramfs: &'a Path,
    /// Its disk, which it may change.
    pub disk: &'a Path,
    /// More words for its command line.
    pub words: &'a str,
    /// Where its console goes.
    pub console: &'a Path,
}

/// Boots the guest, waits until it switches itself off, and returns what its console said.
pub fn run(parts: &Parts<'_>) -> anyhow::Result<String> {
    let words = format!(
        "console=ttyS0 quiet panic=-1 random.trust_cpu=on ipv6.disable=1 ip=10.0.2.15/24 gw=10.0.2.2 {}",
        parts.words
    );
    let mut qemu = Command::new(tool("qemu-system-x86_64")?);
    qemu.args(["-accel", "tcg", "-cpu", "max", "-machine", "q35", "-m", MEMORY])
        .args(["-nodefaults", "-no-reboot", "-display", "none"])
        .arg("-serial")
        .arg(format!("file:{}", parts.console.display()))
        .arg("-kernel")
        .arg(&parts.kernel.image)
        .arg("-initrd")
        .arg(parts.initramfs)
        .args(["-append", &words])
        .arg("-drive")
        .arg(format!(
            "id=disk,if=none,format=raw,cache=unsafe,file={}",
            parts.disk.display()
        ))
        .args(["-device", "virtio-blk-pci,drive=disk"])
        .args(["-netdev", "user,id=net,restrict=on"])
        .args(["-device", "virtio-net-pci,netdev=net"])
        .stdin(Stdio::null());
    let ended = Process::start(&mut qemu)?.wait(PATIENCE);
    let said = String::from_utf8_lossy(&std::fs::read(parts.console).unwrap_or_default()).into_owned();
    let last: Vec<_> = said.lines().rev().take(LAST_LINES).collect();
    ended.with_context(|| {
        let last: Vec<_> = last.iter().rev().copied().collect();
        format!("A guest under a stock QEMU. Its console: {}", last.join(" / "))
    })?;
    Ok(said)
}

const MEMORY: &str = "512";
/// Many times as long as any of them took, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(300);
const LAST_LINES: usize = 8;
