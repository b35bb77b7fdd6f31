//! QEMU with an emulated CPU and our two device processes as its disk and its network, and the guest's console.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::bail;

use super::packages::Kernel;
use super::processes::{Process, eventually};

/// Many times as long as any step of a guest ever took, on a machine that does other things too.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What QEMU is started with.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The guest's kernel.
    pub kernel: &'a Kernel,
    /// The guest's file system.
    pub initramfs: &'a Path,
    /// The disk's vhost-user socket.
    pub disk: &'a Path,
    /// The network's vhost-user socket.
    pub network: &'a Path,
    /// More words for the kernel's command line.
    pub words: &'a str,
}

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    qemu: Process,
    console: PathBuf,
}

impl Machine {
    /// Starts it; `console` is the file that the guest's console goes to.
    pub fn start(parts: &Parts<'_>, console: PathBuf) -> anyhow::Result<Self> {
        let socket = |id: &str, path: &Path| format!("socket,id={id},path={}", path.display());
        let command_line = format!(
            "console=ttyS0 panic=-1 quiet cryptomgr.notests random.trust_cpu=on {}",
            parts.words
        );
        let mut qemu = Command::new("qemu-system-x86_64");
        // One thread emulates both CPUs: with a thread each, one of the first ten boots got stuck in the kernel's own cipher tests.
        qemu.args([
            "-accel",
            "tcg,thread=single",
            "-machine",
            "q35,memory-backend=memory",
            "-smp",
            "2",
            "-m",
            "256M",
        ])
        .args(["-nodefaults", "-no-reboot", "-display", "none"])
        .args(["-object", "memory-backend-memfd,id=memory,size=256M,share=on"])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .arg("-kernel")
        .arg(&parts.kernel.image)
        .arg("-initrd")
        .arg(parts.initramfs)
        .args(["-append", &command_line])
        .args(["-chardev", &socket("disk", parts.disk)])
        .args(["-device", "vhost-user-blk-pci,chardev=disk,num-queues=2"])
        .args(["-chardev", &socket("network", parts.network)])
        .args(["-netdev", "vhost-user,id=net0,chardev=network"])
        .args([
            "-device",
            "virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56,vectors=0",
        ])
        .stdin(Stdio::null());
        Ok(Self {
            qemu: Process::start(&mut qemu)?,
            console,
        })
    }

    /// What the guest said under this word; waits until it did.
    pub fn said(&mut self, word: &str) -> anyhow::Result<String> {
        let beginning = format!("LOCKSTEP {word} ");
        let (qemu, console) = (&mut self.qemu, &self.console);
        eventually(&format!("the guest to say `{word}`"), PATIENCE, || {
            let ended = qemu.check();
            let text = read(console)?;
            // A line without its end is still being said.
            let value = text
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'))
                .find_map(|line| line.trim().strip_prefix(beginning.as_str()));
            match (value, ended) {
                (Some(value), _) => Ok(Some(
                    value.split_whitespace().next().unwrap_or_default().to_owned(),
                )),
                (None, ended) => ended.map(|()| None),
            }
        })
    }

    /// Waits for the guest to power off.
    pub fn wait(&mut self) -> anyhow::Result<()> {
        self.qemu.wait(PATIENCE)?;
        match read(&self.console)?.contains("LOCKSTEP failed") {
            true => bail!("The guest failed at something"),
            false => Ok(()),
        }
    }

    /// Everything that the guest said, for a report.
    pub fn console(&self) -> String {
        format!(
            "The guest's console:\n{}",
            read(&self.console).unwrap_or_default()
        )
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.console());
        }
    }
}

fn read(console: &Path) -> anyhow::Result<String> {
    match std::fs::read(console) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        // QEMU has not made it yet.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error.into()),
    }
}
