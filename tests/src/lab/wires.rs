//! The cables between the emulated hosts and to the outside: three bridges and two taps on each, in the network
//! namespace that the lab runs in. The test machine itself is the outside, and has an address on the front wire.
//!
//! Faults of a wire's quality (delay, loss, rate) are made by netem inside the hosts; here a cable is plugged or not.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::packages::tool;

/// One of the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// The first primary.
    A,
    /// The first backup.
    B,
}

/// A cable from every host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Between the two hosts only.
    Pair,
    /// To the clients; the guest's frames are on it.
    Front,
    /// From the test machine to the hosts: the arbiter and the lab's own orders.
    Manage,
}

/// Both hosts.
pub const NODES: [Node; 2] = [Node::A, Node::B];
const WIRES: [Wire; 3] = [Wire::Pair, Wire::Front, Wire::Manage];

/// The guest's server, as the outside sees it.
pub const GUEST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2)), 6379);
/// The outside, as the guest sees it.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The arbiter, as the hosts see it.
pub const ARBITER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 79, 0, 1)), 7443);

impl Node {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Its name in the pair's configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// The other one.
    pub fn peer(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Its place in arrays and addresses.
    pub fn number(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
        }
    }

    /// Where its peer finds it.
    pub fn pair_address(self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::new(10, 78, 0, self.number()), 7001))
    }

    /// Where it takes the lab's orders.
    pub fn agent_address(self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::new(10, 79, 0, 10 + self.number()), AGENT_PORT))
    }
}

impl Wire {
    /// All of a host's, in the order in which it has them.
    pub fn all() -> [Self; 3] {
        WIRES
    }

    /// Its name inside a host.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pair => "pair",
            Self::Front => "front",
            Self::Manage => "manage",
        }
    }

    /// The tap that a host's end of it is plugged into.
    pub fn tap(self, node: Node) -> String {
        format!("{}-{}", self.name(), node.name())
    }

    /// The hardware address of a host's end; the last byte says which wire, the one before it which host.
    pub fn mac(self, node: Node) -> String {
        let number = match self {
            Self::Pair => 1,
            Self::Front => 2,
            Self::Manage => 3,
        };
        format!("52:54:00:4c:{:02x}:{number:02x}", node.number())
    }
}

/// Lays all cables. They are gone with the namespace.
pub fn lay() -> anyhow::Result<()> {
    // The kernel's own IPv6 chatter is no part of any story.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    let mut orders = String::from("link set lo up\n");
    for wire in WIRES {
        let bridge = wire.name();
        orders.push_str(&format!(
            "link add {bridge} address 52:54:00:4c:00:00 type bridge\nlink set {bridge} up\n"
        ));
        for tap in NODES.map(|node| wire.tap(node)) {
            orders.push_str(&format!(
                "tuntap add {tap} mode tap vnet_hdr\nlink set {tap} master {bridge} up\n"
            ));
        }
    }
    orders.push_str(&format!("addr add {OUTSIDE}/24 dev front\n"));
    orders.push_str(&format!("addr add {}/24 dev manage\n", ARBITER.ip()));
    ip(&orders)
}

/// Gives the test machine one more address on a wire.
pub fn call_outside(address: &str, wire: Wire) -> anyhow::Result<()> {
    ip(&format!("addr add {address} dev {}\n", wire.name()))
}

/// Pulls a host's end of a cable out.
pub fn unplug(wire: Wire, node: Node) -> anyhow::Result<()> {
    ip(&format!("link set {} down\n", wire.tap(node)))
}

/// Puts it back.
pub fn plug(wire: Wire, node: Node) -> anyhow::Result<()> {
    ip(&format!("link set {} up\n", wire.tap(node)))
}

fn ip(orders: &str) -> anyhow::Result<()> {
    let mut child = Command::new(tool("ip")?)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("Cannot run ip")?;
    child
        .stdin
        .take()
        .expect("its input is a pipe")
        .write_all(orders.as_bytes())?;
    let ended = child.wait_with_output()?;
    if !ended.status.success() {
        bail!(
            "Cannot lay the lab's wires: {}",
            String::from_utf8_lossy(&ended.stderr).trim()
        );
    }
    Ok(())
}

/// Where a host's agent listens.
pub const AGENT_PORT: u16 = 7000;
