//! The configuration files of the lab's pair, as text. Nothing here touches a file.

use std::net::SocketAddr;
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
    /// The same with PostgreSQL instead, for stories in which a host dies or the wire is cut
    Postgres,
}

impl Guest {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Micro => "micro",
            Self::Debian => "debian",
            Self::Postgres => "postgres",
        }
    }

    /// Many times as long as its boot ever took here.
    pub fn boot_time(self) -> Duration {
        Duration::from_secs(match self {
            Self::Micro => 60,
            Self::Debian | Self::Postgres => 300,
        })
    }

    /// Its server, as the outside sees it.
    pub fn server(self) -> SocketAddr {
        match self {
            Self::Micro | Self::Debian => GUEST,
            Self::Postgres => SocketAddr::new(GUEST.ip(), POSTGRES_PORT),
        }
    }

    /// Room for Debian's kernel, its initramfs twice, and the server.
    pub fn memory_mib(self) -> u32 {
        match self {
            Self::Micro => 64,
            Self::Debian => 192,
            Self::Postgres => 256,
        }
    }
}

/// Whose the guest's disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Disks {
    /// One disk that both hosts reach, as in a storage network
    Shared,
    /// Each host has its own, and executes the same writes on it
    Mirror,
}

impl Disks {
    /// Its name, in the configuration too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Mirror => "mirror",
        }
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
    /// For which the guest may run without an exit while inputs wait.
    pub stall_limit_ms: u64,
}

/// The timing of all pairs of the lab.
pub const TIMING: Timing = Timing {
    heartbeat_ms: 100,
    timeout_ms: 1000,
    lease_ms: 800,
    stall_limit_ms: 100,
};

const POSTGRES_PORT: u16 = 5432;

/// The configuration of the pair.
pub const PAIR: &str = "vm.toml";
/// The same VM under another name: terms of an unprotected run are no business of the pair's.
pub const ALONE: &str = "alone.toml";

/// A node's run directory on its host.
pub fn run_dir(node: Node) -> String {
    format!("/run/lockstep/{}", node.name())
}

/// What the guest is told at its boot.
pub fn cmdline(guest: Guest) -> String {
    let server = guest.server();
    let network = format!("ip={}/24 gw={OUTSIDE} port={}", server.ip(), server.port());
    match guest {
        Guest::Micro => network,
        Guest::Debian | Guest::Postgres => format!("console=ttyS0 quiet panic=-1 ipv6.disable=1 {network}"),
    }
}

/// The configuration of a VM, the same on both hosts.
pub fn toml(guest: Guest, vcpus: u8, disks: Disks, name: &str) -> String {
    let Timing {
        heartbeat_ms,
        timeout_ms,
        lease_ms,
        stall_limit_ms,
    } = TIMING;
    let (cmdline, memory_mib) = (cmdline(guest), guest.memory_mib());
    let vm = match guest {
        Guest::Micro => {
            format!("guest = \"micro\"\nmemory_mib = {memory_mib}\ncmdline = \"{cmdline}\"\n")
        }
        Guest::Debian | Guest::Postgres => format!(
            "console = \"stdio\"\nmemory_mib = {memory_mib}\nkernel = \"{GUEST_DIR}/vmlinuz\"\ninitrd = \"{GUEST_DIR}/initrd\"\n\
             cmdline = \"{cmdline}\"\n"
        ),
    };
    let nodes: String = NODES.map(node_toml).concat();
    format!(
        "[vm]\nname = \"{name}\"\nvcpus = {vcpus}\n{vm}\
         [vm.net]\nmac = \"52:54:00:4c:53:01\"\n\
         [vm.disk]\nmode = \"{}\"\n\
         [pair]\nheartbeat_ms = {heartbeat_ms}\ntimeout_ms = {timeout_ms}\nlease_ms = {lease_ms}\n\
         stall_limit_ms = {stall_limit_ms}\n\
         [arbiter]\nkind = \"quic\"\naddress = \"{ARBITER}\"\ncertificate = \"keys/arbiter.crt\"\n{nodes}",
        disks.name()
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
