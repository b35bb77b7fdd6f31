//! Names, addresses and paths of the demo's world, and the configuration file made of them. Pure text: nothing here
//! touches the file system.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;

use super::relay::Route;
use crate::args::{Arbiter, Disk};

/// The two hosts.
pub(crate) const NODES: [&str; 2] = ["a", "b"];
/// The guest's server, as the outside sees it.
pub(crate) const GUEST: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 2), 6379));
/// The outside: the bridge that both hosts' taps are on.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Size of the network that guest and outside are in.
pub(crate) const PREFIX: u8 = 24;
/// The disk, or each host's image of it; sparse, so it costs what is written.
pub(crate) const DISK_BYTES: u64 = 256 << 20;
/// Whose keys the arbiter service has.
pub(crate) const ARBITER_NAME: &str = "arbiter";

/// How the hosts reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    /// At their own addresses.
    Straight,
    /// At the addresses of a relay.
    Relayed,
}

/// Where everything of one world is.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
    pub(crate) arbiter: Arbiter,
    pub(crate) wire: Wire,
    pub(crate) disk: Disk,
    pub(crate) vcpus: u8,
}

impl Layout {
    pub(crate) fn config_file(&self) -> PathBuf {
        self.dir.join("vm.toml")
    }

    pub(crate) fn arbiter_config_file(&self) -> PathBuf {
        self.dir.join("arbiter.toml")
    }

    /// The one disk, or both images of it.
    pub(crate) fn disks(&self) -> Vec<PathBuf> {
        match self.disk {
            Disk::Shared => vec![self.dir.join(disk(self.disk, NODES[0]))],
            Disk::Mirror => NODES.map(|node| self.dir.join(disk(self.disk, node))).to_vec(),
        }
    }

    /// A host's own image of the disk.
    pub(crate) fn image_of(&self, node: &str) -> Option<PathBuf> {
        (self.disk == Disk::Mirror).then(|| self.dir.join(disk(self.disk, node)))
    }

    pub(crate) fn keys_dir(&self) -> PathBuf {
        self.dir.join("keys")
    }

    pub(crate) fn arbiter_dir(&self) -> PathBuf {
        self.dir.join("arbiter")
    }

    pub(crate) fn control_socket(&self, node: &str) -> PathBuf {
        self.dir.join(node).join("control.sock")
    }

    /// The relay's sockets: where a host is looked for, and where it is.
    pub(crate) fn relay_routes(&self) -> Vec<Route> {
        NODES
            .iter()
            .map(|node| Route {
                front: relay_address(node),
                back: host_address(node),
            })
            .collect()
    }

    /// The configuration of a node that is started by itself, in a world in which nobody ever had a term.
    pub(crate) fn config_file_apart(&self, node: &str) -> PathBuf {
        self.dir.join(format!("vm-{node}.toml"))
    }

    /// What is in it.
    pub(crate) fn toml_apart(&self, node: &str) -> String {
        self.toml_by(Arbiter::File, &format!("arbiter-{node}"))
    }

    /// The configuration file, the same for both hosts.
    pub(crate) fn toml(&self) -> String {
        self.toml_by(self.arbiter, "arbiter")
    }

    fn toml_by(&self, arbiter: Arbiter, dir: &str) -> String {
        let mut text = String::from(VM);
        push(&mut text, format_args!("vcpus = {}\n", self.vcpus));
        text.push_str(NET);
        push(
            &mut text,
            format_args!("[vm.disk]\nmode = \"{}\"\n\n", self.disk.word()),
        );
        match arbiter {
            Arbiter::File => push(
                &mut text,
                format_args!("[arbiter]\nkind = \"file\"\ndir = \"{dir}\"\n"),
            ),
            Arbiter::Quic => {
                let address = arbiter_address();
                let certificate = format!("keys/{ARBITER_NAME}.crt");
                push(
                    &mut text,
                    format_args!("[arbiter]\nkind = \"quic\"\naddress = \"{address}\"\n"),
                );
                push(&mut text, format_args!("certificate = \"{certificate}\"\n"));
            }
        }
        for node in NODES {
            let own = host_address(node);
            let found_at = match self.wire {
                Wire::Straight => own,
                Wire::Relayed => relay_address(node),
            };
            push(
                &mut text,
                format_args!("\n[node.{node}]\naddress = \"{found_at}\"\nlisten = \"{own}\"\n"),
            );
            push(
                &mut text,
                format_args!("certificate = \"keys/{node}.crt\"\nkey = \"keys/{node}.key\"\n"),
            );
            push(
                &mut text,
                format_args!(
                    "tap = \"{}\"\ndisk = \"{}\"\nrun_dir = \"{node}\"\n",
                    tap(node),
                    disk(self.disk, node)
                ),
            );
        }
        text
    }

    /// The configuration file of the arbiter service.
    pub(crate) fn arbiter_toml(&self) -> String {
        let mut text = format!("listen = \"{}\"\ndir = \"arbiter\"\n", arbiter_address());
        push(
            &mut text,
            format_args!("certificate = \"keys/{ARBITER_NAME}.crt\"\nkey = \"keys/{ARBITER_NAME}.key\"\n"),
        );
        for node in NODES {
            push(
                &mut text,
                format_args!("[client.{node}]\ncertificate = \"keys/{node}.crt\"\n"),
            );
        }
        text
    }
}

/// The tap of a host.
pub(crate) fn tap(node: &str) -> String {
    format!("ls-{node}")
}

/// The file name of a host's disk.
fn disk(disk: Disk, node: &str) -> String {
    match disk {
        Disk::Shared => "disk.raw".into(),
        Disk::Mirror => format!("disk-{node}.raw"),
    }
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments)
        .expect("writing into a String cannot fail");
}

fn host_address(node: &str) -> SocketAddr {
    SocketAddr::from((loopback(node), 7001))
}

fn relay_address(node: &str) -> SocketAddr {
    SocketAddr::from((loopback(node), 7101))
}

/// Each host has a loopback address of its own, so that packets tell who sent them.
fn loopback(node: &str) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, if node == NODES[0] { 2 } else { 3 })
}

fn arbiter_address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(127, 0, 0, 4), 7001))
}

const VM: &str = r#"# Made by lockstep demo.
[vm]
name = "demo"
guest = "micro"
memory_mib = 64
cmdline = "ip=10.77.0.2/24 gw=10.77.0.1 port=6379"
"#;
const NET: &str = r#"[vm.net]
mac = "52:54:00:4c:53:01"
"#;
