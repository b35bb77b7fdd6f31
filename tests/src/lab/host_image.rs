//! What an emulated host is made of: Debian's kernel modules, busybox, `ip` and `tc`, our programs, and a script that
//! wires it up and then takes orders. Nothing is installed on it and nothing stays on it: its root is an initramfs.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::packages::tool;
use super::tree::Tree;
use super::wires::AGENT_PORT;
use crate::qemu::packages::Kernel;

/// Where our programs lie on a host.
pub const PROGRAMS: &str = "/lockstep";
/// Where what a guest boots lies on a host.
pub const GUEST: &str = "/guest";
/// The tap of the guest on a host.
pub const TAP: &str = "guest";
/// The port that the log of `lockstep run` is written to; the test machine keeps it when the host is dead.
pub const LOG_PORT: &str = "/dev/vport0p1";
/// The same for the guest's console.
pub const CONSOLE_PORT: &str = "/dev/vport0p2";

const OWN: [&str; 3] = ["lockstep", "vhost-net-ft", "vhost-blk-ft"];
const MODULES: [&str; 8] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "tun",
    "bridge",
    "sch_netem",
    "kvm-amd",
];

/// What a host's image is made from.
#[derive(Debug)]
pub struct Parts<'a> {
    /// Of host and guest.
    pub kernel: &'a Kernel,
    /// The folder with our programs.
    pub programs: &'a Path,
    /// More programs of ours, if the scenario runs them on a host.
    pub examples: &'a [PathBuf],
    /// What it is to be when it says that it is ready.
    pub state: State<'a>,
}

/// What is on a host beside programs, and how far it is set up.
#[derive(Debug)]
pub enum State<'a> {
    /// All wires are on their bridges. The guest may have a file system to start from.
    Wired {
        /// Where that lies.
        guest: Option<&'a Path>,
    },
    /// As a new user has it who follows README: the pair's wire is `eth0` and has README's address, the guest's is `eth1`;
    /// and there is a shell that understands all that README types.
    Bare {
        /// The folder with the guest's `vmlinuz` and `initrd`.
        boot: &'a Path,
    },
}

/// Builds the image in a folder of its own and says where it is.
pub fn build(folder: &Path, parts: &Parts<'_>) -> anyhow::Result<PathBuf> {
    let tree = Tree::new(folder)?;
    tree.script("init", &script(&parts.state))?;
    tree.modules(parts.kernel, &MODULES)?;
    let within = PROGRAMS.trim_start_matches('/');
    for name in ["ip", "tc"] {
        tree.program(&tool(name)?, &format!("{within}/{name}"))?;
    }
    for name in OWN {
        tree.own_program(&parts.programs.join(name), &format!("{within}/{name}"))?;
    }
    for example in parts.examples {
        let name = example.file_name().context("An example is a file")?;
        tree.own_program(example, &format!("{within}/{}", name.to_string_lossy()))?;
    }
    match parts.state {
        State::Wired { guest: None } => {}
        State::Wired { guest: Some(guest) } => {
            let within = GUEST.trim_start_matches('/');
            tree.copy(&parts.kernel.image, &format!("{within}/vmlinuz"))?;
            tree.copy(guest, &format!("{within}/initrd"))?;
        }
        State::Bare { boot } => {
            let arbiter = "lockstep-arbiter";
            tree.own_program(&parts.programs.join(arbiter), &format!("{within}/{arbiter}"))?;
            for name in ["bash", "socat"] {
                tree.program(&tool(name)?, &format!("{within}/{name}"))?;
            }
            tree.folder(boot, "etc/lockstep")?;
        }
    }
    tree.pack()
}

/// The host's first process. The last byte of a hardware address says which wire it is on (`wires.rs`).
fn script(state: &State<'_>) -> String {
    let wires = match state {
        State::Wired { .. } => wired(),
        State::Bare { .. } => BARE.to_owned(),
    };
    format!(
        r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH={PROGRAMS}:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
# Not just "ip": this shell would take busybox's own.
ip={PROGRAMS}/ip
say() {{ echo "LOCKSTEP $*" > /dev/console; }}
while read -r module; do insmod /modules/$module || say failed insmod $module; done < /modules/order
number=$(sed -n 's/.*lab.host=\([0-9]*\).*/\1/p' /proc/cmdline)
for link in /sys/class/net/eth*; do
    case $(cat $link/address) in
        *:01) $ip link set ${{link##*/}} name pair;;
        *:02) $ip link set ${{link##*/}} name front;;
        *:03) $ip link set ${{link##*/}} name manage;;
    esac || say failed name of $link
done
$ip addr add 10.79.0.1$number/24 dev manage || say failed address
$ip link set lo up; $ip link set manage up
{wires}[ -c /dev/kvm ] || say failed kvm
mkdir -p /run/lockstep
say ready now
while true; do nc -ll -p {AGENT_PORT} -e /bin/sh; done
"#
    )
}

/// What makes a host ready for a pair.
fn wired() -> String {
    format!(
        r#"$ip addr add 10.78.0.$number/24 dev pair || say failed address
$ip link add br0 type bridge && $ip tuntap add {TAP} mode tap vnet_hdr || say failed bridge
$ip link set front master br0 && $ip link set {TAP} master br0 || say failed ports
for link in pair front {TAP} br0; do $ip link set $link up || say failed link $link; done
"#
    )
}

/// What a new user's host is like.
const BARE: &str = "$ip link set pair name eth0 && $ip link set front name eth1 || say failed names
$ip addr add 192.0.2.$number/24 dev eth0 && $ip link set eth0 up || say failed address
mkdir -p /etc/lockstep
";
