//! A network that only one story and the processes it starts can see, with a bridge in it that stands for the outside.
//!
//! Stories call [`alone`] around everything else. A network namespace belongs to a thread, and so to every process that
//! the thread starts; the kernel removes it with the last of them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{Handle, LinkBridge, LinkUnspec};

/// The guest's server, as the outside sees it.
pub const GUEST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2)), 6379);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const BRIDGE: &str = "outside";
/// A bridge without an address of its own takes another one when a port goes, as no switch does.
const BRIDGE_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x4c, 0x53, 0x00];
/// Set for a story that runs inside a user namespace already.
const INSIDE: &str = "LOCKSTEP_TEST_INSIDE_NAMESPACE";

/// Tells `story` in a network of its own: for root on this thread, for others in a second run of this program inside a
/// user namespace. `name` is the story's own.
///
/// # Panics
/// When the story fails, or the network cannot be made: it never passes unheard.
pub fn alone(name: &str, story: impl FnOnce()) {
    match enter() {
        Ok(()) => return story(),
        Err(error) if std::env::var_os(INSIDE).is_some() => panic!("{error:#}"),
        Err(_) => {}
    }
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net"])
        .arg(std::env::current_exe().expect("this program lies somewhere"))
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare is part of util-linux");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let passed = output.status.success() && said(&output.stdout).contains("1 passed");
    assert!(
        passed,
        "Run this as root, or see what `lockstep check` says about namespaces:\n{}\n{}",
        said(&output.stdout),
        said(&output.stderr)
    );
}

/// Moves this thread into a new network, with loopback and the bridge up.
fn enter() -> anyhow::Result<()> {
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => {}
        Err(Errno::EPERM) => bail!("Cannot make a network namespace without being root"),
        Err(error) => return Err(error).context("Cannot make a network namespace"),
    }
    // The kernel's own IPv6 chatter is no part of any story.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    with_netlink(async |netlink| {
        let loopback = LinkUnspec::new_with_index(if_nametoindex("lo")?).up().build();
        netlink.link().set(loopback).execute().await?;
        let bridge = LinkBridge::new(BRIDGE).address(BRIDGE_MAC.to_vec()).up().build();
        netlink.link().add(bridge).execute().await?;
        let bridge = if_nametoindex(BRIDGE)?;
        netlink
            .address()
            .add(bridge, IpAddr::V4(OUTSIDE), 24)
            .execute()
            .await?;
        Ok(())
    })
    .context("Cannot set up the network namespace")
}

/// Whether there is an interface of that name.
pub fn has(name: &str) -> bool {
    if_nametoindex(name).is_ok()
}

/// Puts a tap on the bridge.
pub fn plug(tap: &str) -> anyhow::Result<()> {
    with_netlink(async |netlink| {
        let port = LinkUnspec::new_with_index(if_nametoindex(tap)?)
            .controller(if_nametoindex(BRIDGE)?)
            .up()
            .build();
        Ok(netlink.link().set(port).execute().await?)
    })
    .with_context(|| format!("Cannot put {tap} on the bridge"))
}

fn with_netlink(ask: impl AsyncFnOnce(Handle) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let (connection, netlink, _) = rtnetlink::new_connection()?;
        let speaker = tokio::spawn(connection);
        let answer = ask(netlink).await;
        speaker.abort();
        answer
    })
}
