//! The network of the world: a namespace that only this process and its children see, with a bridge in it that stands
//! for the outside. Entered once, before any thread exists; the kernel removes it with its last process.

use std::fs;
use std::net::IpAddr;

use anyhow::{Context, bail};
use futures_util::TryStreamExt;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid};
use rtnetlink::{Handle, LinkBridge, LinkUnspec};

use super::config::{OUTSIDE, PREFIX};

/// Moves this process into a network namespace of its own, as root or as an ordinary user.
pub(crate) fn enter() -> anyhow::Result<()> {
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => return Ok(()),
        Err(Errno::EPERM) => {}
        Err(error) => return Err(error).context("Cannot make a network namespace"),
    }
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).context(
        "Cannot make a user and network namespace; run as root, or see what `lockstep check` says about namespaces",
    )?;
    // Without this the kernel lets no ordinary user map a group.
    fs::write("/proc/self/setgroups", "deny").context("Cannot give up setgroups")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))
        .context("Cannot map this user into the namespace")?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).context("Cannot map this group into the namespace")
}

/// The bridge and the way to put taps on it.
#[derive(Clone)]
pub(crate) struct Network {
    netlink: Handle,
    bridge: u32,
}

impl Network {
    /// Brings up loopback and the bridge. Needs a running tokio.
    pub(crate) async fn new() -> anyhow::Result<Self> {
        // The outside speaks IPv4 only; the kernel's own IPv6 chatter would just blur what the bench measures.
        let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        let (connection, netlink, _) = rtnetlink::new_connection().context("Cannot speak netlink")?;
        tokio::spawn(connection);
        let loopback = index(&netlink, "lo")
            .await?
            .context("The namespace has no loopback")?;
        up(&netlink, loopback).await.context("Cannot bring loopback up")?;
        netlink
            .link()
            .add(LinkBridge::new(BRIDGE).address(BRIDGE_MAC.to_vec()).up().build())
            .execute()
            .await
            .context("Cannot make a bridge")?;
        let bridge = index(&netlink, BRIDGE)
            .await?
            .context("The bridge is gone again")?;
        netlink
            .address()
            .add(bridge, IpAddr::V4(OUTSIDE), PREFIX)
            .execute()
            .await
            .context("Cannot give the bridge its address")?;
        Ok(Self { netlink, bridge })
    }

    /// Puts those taps on the bridge that exist already; true when all do.
    pub(crate) async fn plug(&self, taps: &[String]) -> anyhow::Result<bool> {
        let mut all = true;
        for tap in taps {
            let Some(tap) = index(&self.netlink, tap).await? else {
                all = false;
                continue;
            };
            let message = LinkUnspec::new_with_index(tap)
                .controller(self.bridge)
                .up()
                .build();
            match self.netlink.link().set(message).execute().await {
                Ok(()) => {}
                // Its host has just died, and took it along.
                Err(error) if is_gone(&error) => all = false,
                Err(error) => return Err(error).context("Cannot put a tap on the bridge"),
            }
        }
        Ok(all)
    }

    /// Takes a tap down, as if its cable were pulled; [`Self::plug`] brings it up again.
    pub(crate) async fn pull(&self, tap: &str) -> anyhow::Result<()> {
        let Some(tap) = index(&self.netlink, tap).await? else {
            return Ok(());
        };
        let message = LinkUnspec::new_with_index(tap).down().build();
        let set = self.netlink.link().set(message).execute().await;
        set.context("Cannot take a tap down")
    }
}

async fn up(netlink: &Handle, index: u32) -> Result<(), rtnetlink::Error> {
    netlink
        .link()
        .set(LinkUnspec::new_with_index(index).up().build())
        .execute()
        .await
}

/// The number of an interface, if there is one of that name.
async fn index(netlink: &Handle, name: &str) -> anyhow::Result<Option<u32>> {
    let mut links = netlink.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(link) => Ok(link.map(|link| link.header.index)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => bail!("Cannot ask for the interface {name}: {error}"),
    }
}

/// Whether there is no such interface.
fn is_gone(error: &rtnetlink::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(error) if error.raw_code() == -(Errno::ENODEV as i32))
}

const BRIDGE: &str = "ls0";
/// A bridge without an address of its own takes that of a port, and another one when the port goes: the outside would
/// forget its neighbours in the moment of the kill, as no switch does.
const BRIDGE_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x4c, 0x53, 0x00];
