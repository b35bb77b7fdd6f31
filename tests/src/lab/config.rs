//! The configuration files of the lab's pair, as text. Nothing here touches a file.

use std::time::Duration;

use clap::ValueEnum;

use super::host_image::{GUEST as GUEST_DIR, TAP};
use super::wires::{ARBITER, GUEST, NODES, Node, OUTSIDE};

/// What the VM boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Guest {
    /// The key-value server that is embedded in lockstep
    Micro,
    /// Debian's kernel and redis-server, on an ext4 disk
    Debian,
}

impl Guest {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Micro => "micro",
            Self::Debian => "debian",
        }
    }

    /// Many times as long as its boot ever took here.
    pub fn boot_time(self) -> Duration {
        Duration::from_secs(match self {
            Self::Micro => 60,
            Self::Debian => 300,
        })
    }
}

/// How long what takes, in ms. Everything in an emulated host takes 10 to 50 times as long as on a real one, and two
/// of them share this machine's CPUs with whatever else it does.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between two heartbeats.
    pub heartbeat_ms: u64,
    /// Of silence until a host counts as lost.
    pub timeout_ms: u64,
    /// For which outputs may leave after the peer's last word.
    pub lease_ms: u64,
}

/// The timing of all pairs of the lab.
pub const TIMING: Timing = Timing {
    heartbeat_ms: 100,
    timeout_ms: 1000,
    lease_ms: 800,
};

/// The configuration of the pair.
pub const PAIR: &str = "vm.toml";
/// The same VM under another name: terms of an unprotected run are no business of the pair's.
pub const ALONE: &str = "alone.toml";

/// A node's run directory on its host.
pub fn run_dir(node: Node) -> String {
    format!("/run/lockstep/{}", node.name())
}

/// The configuration of a VM, the same on both hosts.
pub fn toml(guest: Guest, name: &str) -> String {
    let Timing {
        heartbeat_ms,
        timeout_ms,
        lease_ms,
    } = TIMING;
    let network = format!("ip={}/24 gw={OUTSIDE} port={}", GUEST.ip(), GUEST.port());
    let vm = match guest {
        Guest::Micro => format!("guest = \"micro\"\nmemory_mib = 64\ncmdline = \"{network}\"\n"),
        Guest::Debian => format!(
            "memory_mib = 192\nkernel = \"{GUEST_DIR}/vmlinuz\"\ninitrd = \"{GUEST_DIR}/initrd\"\n\
             cmdline = \"console=ttyS0 quiet ipv6.disable=1 {network}\"\n"
        ),
    };
    let nodes: String = NODES.map(node_toml).concat();
    format!(
        "[vm]\nname = \"{name}\"\n{vm}\
         [vm.net]\nmac = \"52:54:00:4c:53:01\"\n\
         [vm.disk]\nmode = \"shared\"\n\
         [pair]\nheartbeat_ms = {heartbeat_ms}\ntimeout_ms = {timeout_ms}\nlease_ms = {lease_ms}\n\
         [arbiter]\nkind = \"quic\"\naddress = \"{ARBITER}\"\ncertificate = \"keys/arbiter.crt\"\n{nodes}"
    )
}

fn node_toml(node: Node) -> String {
    let name = node.name();
    format!(
        "[node.{name}]\naddress = \"{}\"\ncertificate = \"keys/{name}.crt\"\nkey = \"keys/{name}.key\"\n\
         tap = \"{TAP}\"\ndisk = \"/dev/vda\"\nrun_dir = \"{}\"\n",
        node.pair_address(),
        run_dir(node)
    )
}

/// The configuration of the arbiter service on the test machine.
pub fn arbiter_toml() -> String {
    let clients: String = NODES
        .map(|node| format!("[client.{0}]\ncertificate = \"keys/{0}.crt\"\n", node.name()))
        .concat();
    format!(
        "listen = \"{ARBITER}\"\ndir = \"terms\"\ncertificate = \"keys/arbiter.crt\"\nkey = \"keys/arbiter.key\"\n{clients}"
    )
}
