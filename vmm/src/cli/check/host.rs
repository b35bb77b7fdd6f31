//! What `lockstep check` says about the rest of the machine: taps, rights, namespaces, priorities and the device
//! processes beside this executable.

use std::env;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use rustix::process::{Resource, getrlimit};

use super::Line;

pub(super) fn check() -> Vec<Line> {
    let capabilities = effective_capabilities();
    let mut lines = vec![
        tun(),
        net_admin(capabilities),
        namespaces(capabilities),
        priority(capabilities),
    ];
    lines.extend(BINARIES.iter().map(|name| binary(name)));
    lines
}

fn tun() -> Line {
    match OpenOptions::new().read(true).write(true).open(TUN) {
        Ok(_) => Line::ok("tap devices", format!("{TUN} opens")),
        Err(error) => Line::fail(
            "tap devices",
            format!("{TUN} cannot be opened: {error}"),
            "Load the module tun; give this user read and write access to the device",
        ),
    }
}

fn net_admin(capabilities: u64) -> Line {
    if has(capabilities, CAP_NET_ADMIN) {
        return Line::ok("network rights", "CAP_NET_ADMIN: taps can be made here");
    }
    Line::note(
        "network rights",
        "No CAP_NET_ADMIN: taps cannot be made here",
        "Prepare them as root: ip tuntap add NAME mode tap vnet_hdr user USER; the demo needs no preparation",
    )
}

/// A new network namespace is what the demo lives in.
fn namespaces(capabilities: u64) -> Line {
    const NAME: &str = "namespaces";
    if has(capabilities, CAP_SYS_ADMIN) {
        // Only this short-lived thread moves into the new namespace.
        let made = thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET).is_ok())
            .join()
            .unwrap_or(false);
        return if made {
            Line::ok(NAME, "A network namespace can be made, so the demo can run")
        } else {
            Line::note(
                NAME,
                "The kernel refuses a network namespace: the demo cannot run",
                "Allow it to this container",
            )
        };
    }
    let number = |path: &str| {
        fs::read_to_string(path)
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
    };
    if number("/proc/sys/user/max_user_namespaces") == Some(0) {
        return Line::note(
            NAME,
            "User namespaces are switched off: the demo needs root",
            "sysctl user.max_user_namespaces=15000",
        );
    }
    for (path, closed) in [
        ("/proc/sys/kernel/unprivileged_userns_clone", 0),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", 1),
    ] {
        if number(path) == Some(closed) {
            let setting = path.trim_start_matches("/proc/sys/").replace('/', ".");
            let what = format!("Users may not make namespaces ({setting}={closed}): the demo needs root");
            return Line::note(NAME, what, format!("sysctl {setting}={}", 1 - closed));
        }
    }
    Line::ok(
        NAME,
        "User namespaces are allowed, so the demo can run without root",
    )
}

fn priority(capabilities: u64) -> Line {
    let limit = getrlimit(Resource::Rtprio).current;
    if has(capabilities, CAP_SYS_NICE) || limit.is_none_or(|limit| limit > 0) {
        return Line::ok("real-time priority", "Allowed: heartbeats keep time under load");
    }
    Line::note(
        "real-time priority",
        "Not allowed: on a busy host heartbeats can be late, and a late one costs a takeover",
        "Give this user an rtprio limit above 0, or CAP_SYS_NICE; or raise pair.timeout_ms",
    )
}

fn binary(name: &str) -> Line {
    let Some(path) = env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(|dir| dir.join(name)))
    else {
        return Line::note(
            name,
            "This executable cannot tell where it is",
            "Start it by its full path",
        );
    };
    if is_executable(&path) {
        return Line::ok(name, path.display().to_string());
    }
    let what = format!("{} is missing or cannot be executed", path.display());
    let remedy = "Build the whole workspace with cargo build --release, or copy the file beside lockstep";
    // The service is only for those who want it; without the device processes nothing runs.
    if name == ARBITER {
        Line::note(name, what, remedy)
    } else {
        Line::fail(name, what, remedy)
    }
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn effective_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

fn has(capabilities: u64, bit: u32) -> bool {
    capabilities & (1 << bit) != 0
}

const TUN: &str = "/dev/net/tun";
const ARBITER: &str = "lockstep-arbiter";
const BINARIES: [&str; 3] = ["vhost-net-ft", "vhost-blk-ft", ARBITER];
/// Bit numbers of linux/capability.h.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_NICE: u32 = 23;
