//! An emulated host: one QEMU with an emulated CPU that has SVM, so that its kernel has a real KVM. Killing that QEMU is
//! the power cut. Consoles and logs are files on the test machine and outlive the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use super::agent;
use super::packages::tool;
use super::wires::{Node, Wire};
use crate::qemu::packages::Kernel;
use crate::qemu::processes::{Process, eventually};

/// What a host is started with.
#[derive(Debug)]
pub struct Parts<'a> {
    /// Its kernel.
    pub kernel: &'a Kernel,
    /// Its image, of `host_image.rs`.
    pub image: &'a Path,
    /// Its disk; both hosts may have the same one.
    pub disk: &'a Path,
    /// Where its consoles and logs go.
    pub logs: &'a Path,
}

/// A running host, or a dead one.
#[derive(Debug)]
pub struct Host {
    node: Node,
    qemu: Option<Process>,
    logs: PathBuf,
}

impl Host {
    /// Switches it on.
    pub fn start(node: Node, parts: &Parts<'_>) -> anyhow::Result<Self> {
        let mut host = Self {
            node,
            qemu: None,
            logs: parts.logs.into(),
        };
        let mut qemu = Command::new(tool("qemu-system-x86_64")?);
        qemu.args([
            "-accel",
            "tcg",
            "-cpu",
            "max,+svm,+npt",
            "-smp",
            "1",
            "-m",
            MEMORY,
        ])
        .args(["-machine", "q35", "-nodefaults", "-no-reboot", "-display", "none"])
        .arg("-kernel")
        .arg(&parts.kernel.image)
        .arg("-initrd")
        .arg(parts.image)
        .arg("-append")
        .arg(format!("{COMMAND_LINE} lab.host={}", node.number()))
        .arg("-serial")
        .arg(format!("file:{}", host.file("host").display()))
        .args(["-device", "virtio-serial-pci"]);
        for name in ["log", "guest"] {
            qemu.arg("-chardev")
                .arg(format!("file,id={name},path={}", host.file(name).display()))
                .args(["-device", &format!("virtserialport,chardev={name},name={name}")]);
        }
        qemu.arg("-blockdev")
            .arg(format!(
                // Both hosts have it open, as they would a disk of a storage network.
                "driver=raw,node-name=disk,file.driver=file,file.filename={},file.locking=off,file.cache.direct=on",
                parts.disk.display()
            ))
            .args(["-device", "virtio-blk-pci,drive=disk,share-rw=on"]);
        for wire in Wire::all() {
            let (name, tap, mac) = (wire.name(), wire.tap(node), wire.mac(node));
            qemu.arg("-netdev")
                .arg(format!("tap,id={name},ifname={tap},script=no,downscript=no"))
                .args(["-device", &format!("virtio-net-pci,netdev={name},mac={mac}")]);
        }
        let errors = fs::File::create(host.file("qemu"))?;
        qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        host.qemu = Some(Process::start(&mut qemu)?);
        Ok(host)
    }

    /// Which one it is.
    pub fn node(&self) -> Node {
        self.node
    }

    /// Waits until it takes orders.
    pub fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let what = format!("host {} to boot", self.node.name());
        eventually(&what, BOOT_TIME, || {
            self.check()?;
            let said = self.read("host");
            match said.lines().find(|line| line.contains("LOCKSTEP failed")) {
                Some(line) => bail!("Host {} cannot be set up: {}", self.node.name(), line.trim()),
                None => Ok(said.contains("LOCKSTEP ready").then_some(())),
            }
        })?;
        // It says so a moment before it listens.
        eventually(&what, BOOT_TIME, || Ok(self.run("true").ok().map(drop)))
    }

    /// Says so when it is dead, which it should not be.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match &mut self.qemu {
            Some(qemu) => qemu.check().with_context(|| self.read("qemu").trim().to_owned()),
            None => bail!("Host {} was killed", self.node.name()),
        }
    }

    /// Runs a script on it.
    pub fn run(&self, script: &str) -> anyhow::Result<String> {
        self.run_for(script, ORDER_TIME)
    }

    /// Runs a script on it that may take this long.
    pub fn run_for(&self, script: &str, patience: Duration) -> anyhow::Result<String> {
        agent::run(self.node.agent_address(), script, patience)
            .with_context(|| format!("On host {}", self.node.name()))
    }

    /// The power cut.
    pub fn kill(&mut self) {
        // Its drop is a SIGKILL.
        self.qemu = None;
    }

    /// What one of its consoles or logs holds: `host`, `log`, `guest` or `qemu`.
    pub fn read(&self, name: &str) -> String {
        let bytes = fs::read(self.file(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{}.{name}", self.node.name()))
    }
}

/// Twice what the largest guest has, and room for what the host itself is made of.
const MEMORY: &str = "1536";
const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 random.trust_cpu=on ipv6.disable=1 mitigations=off audit=0";
/// Many times as long as a boot ever took, on a machine that does other things too.
const BOOT_TIME: Duration = Duration::from_secs(120);
const ORDER_TIME: Duration = Duration::from_secs(60);
