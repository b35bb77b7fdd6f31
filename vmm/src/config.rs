//! The configuration of one protected VM: one TOML file, the same on both hosts.
//!
//! `lockstep run`, `check` and `status` call [`Config::load`]; everything later works with the typed values made here
//! and never looks at TOML again. `raw.rs` is the file as written, `validate.rs` turns it into these types and is the
//! only place that refuses a value. This module opens no device and no socket.

mod digest;
mod error;
mod nodes;
mod raw;
mod validate;

#[cfg(test)]
mod tests;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_arbiter::config::ArbiterConfig;
use lockstep_protocol::ids::NodeName;

use crate::vcpu::VcpuCount;

pub use self::error::ConfigError;

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from.
    pub path: PathBuf,
    /// What both hosts run.
    pub vm: Vm,
    /// How the two hosts watch each other.
    pub pair: Pair,
    /// Who hands out terms.
    pub arbiter: Arbiter,
    /// The hosts, in the order of their names: two that power the VM on, and spares.
    pub nodes: Vec<Node>,
    digest: [u8; 32],
}

/// The virtual machine.
#[derive(Clone, Debug)]
pub struct Vm {
    /// What people call it.
    pub name: String,
    /// What it boots.
    pub guest: Guest,
    /// How many vCPUs it has: one is recomputed by the backup, several are copied to it.
    pub vcpus: VcpuCount,
    /// How much RAM it has.
    pub memory_mib: u32,
    /// What the guest reads as its command line.
    pub cmdline: String,
    /// Its network interface, if it has one.
    pub net: Option<Net>,
    /// Its disk, if it has one.
    pub disk: Option<Disk>,
    /// Where its serial console goes.
    pub console: ConsoleMode,
}

impl Vm {
    /// RAM in bytes.
    pub fn memory_bytes(&self) -> u64 {
        u64::from(self.memory_mib) << 20
    }
}

/// What a VM boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guest {
    /// The micro guest that is embedded in `lockstep`.
    Micro,
    /// Stock Linux.
    Linux {
        /// A vmlinux or bzImage.
        kernel: PathBuf,
        /// Its initial file system, if it has one.
        initrd: Option<PathBuf>,
    },
}

/// Where a serial console goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConsoleMode {
    /// Line by line to the log; nothing can be typed.
    #[default]
    Log,
    /// To standard output, and from standard input.
    Stdio,
    /// To and from whoever connects to `console.sock` in the run directory.
    Socket,
}

/// A network interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net {
    /// The same on both hosts: the outside must not notice a takeover.
    pub mac: [u8; 6],
}

/// A disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// How the hosts share it.
    pub mode: DiskMode,
}

/// How the two hosts share a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskMode {
    /// Both hosts reach the same bytes; a write is an output.
    Shared,
    /// Each host has an image of its own, and both execute the guest's writes.
    Mirror,
}

/// Timing and bounds of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// How often each side says that it lives.
    pub heartbeat: Duration,
    /// How long silence lasts before the other side counts as lost.
    pub timeout: Duration,
    /// How long the primary may release outputs after it last heard from its backup.
    pub lease: Duration,
    /// How many bytes of log may wait for an ack before the vCPU waits.
    pub log_window_bytes: u64,
    /// How long the guest may run without an exit while inputs wait for it; then it is stopped where it is.
    pub stall_limit: Duration,
}

/// Who hands out terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arbiter {
    /// A directory on a file system that both hosts share.
    File {
        /// The directory.
        dir: PathBuf,
    },
    /// A `lockstep-arbiter` service.
    Quic {
        /// Where it listens.
        address: SocketAddr,
        /// Its pinned certificate.
        certificate: PathBuf,
    },
}

/// One host.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name: the part after `node.` in the file.
    pub name: NodeName,
    /// Where the other host finds it.
    pub address: SocketAddr,
    /// Where it listens itself.
    pub listen: SocketAddr,
    /// Its certificate, which the other host pins.
    pub certificate: PathBuf,
    /// The private key to it; only this host needs to be able to read it.
    pub key: PathBuf,
    /// Its tap, if the VM has a network interface.
    pub tap: Option<String>,
    /// Its disk file or block device, if the VM has a disk: its own image of it, if the disk is mirrored.
    pub disk: Option<PathBuf>,
    /// Where its sockets live.
    pub run_dir: PathBuf,
    /// A net device process that somebody else started.
    pub net_process: Option<DeviceSockets>,
    /// A disk device process that somebody else started.
    pub blk_process: Option<DeviceSockets>,
    /// It is not one of the two that power the VM on: it waits until one that runs the VM has no backup any more.
    pub is_spare: bool,
}

impl Node {
    /// Where `lockstep status` asks.
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir.join(CONTROL_SOCKET)
    }

    /// Where the guest's console listens, if the configuration asks for it.
    pub fn console_socket(&self) -> PathBuf {
        self.run_dir.join(CONSOLE_SOCKET)
    }
}

/// The two sockets of a device process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSockets {
    /// Its vhost-user socket.
    pub vhost: PathBuf,
    /// Its staging socket.
    pub staging: PathBuf,
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.into(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// Checks `text`, which was read from `path`; relative paths in it start at the folder of `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        validate::validate(path, text)
    }

    /// The host called `name`.
    pub fn node(&self, name: &str) -> Result<&Node, ConfigError> {
        self.nodes
            .iter()
            .find(|node| node.name.as_str() == name)
            .ok_or_else(|| self.no_such_node(name))
    }

    /// The other one of the two that power the VM on; of a spare the first of them.
    pub fn peer_of(&self, name: &str) -> Result<&Node, ConfigError> {
        self.node(name)?;
        let mut others = self.others_of(name).filter(|node| !node.is_spare);
        Ok(others
            .next()
            .expect("a checked configuration has two nodes that are no spares"))
    }

    /// Every host but `name`.
    pub fn others_of(&self, name: &str) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(move |node| node.name.as_str() != name)
    }

    /// How `node` asks the arbiter.
    pub fn arbiter_of(&self, node: &Node) -> ArbiterConfig {
        match self.arbiter.clone() {
            Arbiter::File { dir } => ArbiterConfig::File { dir },
            Arbiter::Quic { address, certificate } => ArbiterConfig::Quic {
                address,
                certificate,
                own_certificate: node.certificate.clone(),
                own_key: node.key.clone(),
            },
        }
    }

    /// What must be equal on both hosts, in 32 bytes: the VM, the timing, the arbiter and the names of the nodes.
    /// Paths count as they are written in the file, so two hosts may keep the file in different places.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    fn no_such_node(&self, name: &str) -> ConfigError {
        let names: Vec<_> = self
            .nodes
            .iter()
            .map(|node| format!("\"{}\"", node.name))
            .collect();
        ConfigError::NoSuchNode {
            path: self.path.clone(),
            name: name.into(),
            known: names.join(" and "),
        }
    }
}

/// File name of the control socket in a run directory.
pub const CONTROL_SOCKET: &str = "control.sock";
/// File name of the console socket in a run directory.
pub const CONSOLE_SOCKET: &str = "console.sock";
