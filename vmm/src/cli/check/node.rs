//! What `lockstep check` says about one node of a configuration: its keys, address, tap, disk, run directory and the
//! arbiter. It opens what the node would open and leaves it as it was.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Seek, SeekFrom};
use std::net::UdpSocket;
use std::path::Path;

use lockstep_arbiter::client::ArbiterClient;
use lockstep_arbiter::register::VmName;
use lockstep_quic::dates::DateError;
use lockstep_quic::failure::whole_sentence;
use lockstep_quic::identity::{Identity, IdentityError, PinnedPeer};

use super::Line;
use crate::config::{Arbiter, Config, DiskMode, Guest, Node};
use crate::hardware::{Hardware, NO_STOCK_KERNELS, NO_STOCK_KERNELS_REMEDY};

pub(super) fn check(config: &Config, node: &Node) -> Vec<Line> {
    let mut lines = vec![own_key(node)];
    // Each of them may be the peer one day, and then it is too late to copy a file.
    lines.extend(config.others_of(node.name.as_str()).map(|other| {
        let name = other.name.as_str();
        pinned(&format!("certificate of {name}"), name, &other.certificate)
    }));
    lines.push(address(node));
    lines.push(directory(
        "run directory",
        &node.run_dir,
        "It is made at the start if its folder may be written",
    ));
    if let Some(tap) = node.tap.as_deref().filter(|_| node.net_process.is_none()) {
        lines.push(self::tap(tap));
    }
    if let Some(disk) = node.disk.as_deref().filter(|_| node.blk_process.is_none()) {
        lines.push(self::disk(disk, config.vm.disk.map(|disk| disk.mode)));
    }
    lines.extend(images(&config.vm.guest));
    if let Arbiter::Quic { certificate, .. } = &config.arbiter {
        lines.push(pinned("arbiter's certificate", "the arbiter", certificate));
    }
    lines.push(arbiter(config, node));
    lines
}

/// What a Linux guest boots.
fn images(guest: &Guest) -> Vec<Line> {
    let Guest::Linux { kernel, initrd } = guest else {
        return Vec::new();
    };
    let mut lines = vec![image("kernel", kernel)];
    lines.extend(initrd.as_deref().map(|initrd| image("initrd", initrd)));
    if Hardware::of_host() == Hardware::Software {
        lines.push(Line::fail("guest", NO_STOCK_KERNELS, NO_STOCK_KERNELS_REMEDY));
    }
    lines
}

fn image(name: &str, path: &Path) -> Line {
    match fs::File::open(path).and_then(|file| file.metadata()) {
        Ok(meta) if meta.is_file() => Line::ok(name, format!("{}, {} KiB", path.display(), meta.len() >> 10)),
        Ok(_) => Line::fail(name, format!("{} is no file", path.display()), "Name a file"),
        Err(error) => Line::fail(
            name,
            format!("{} cannot be read: {error}", path.display()),
            "Copy it here from the guest's disk; it must be the same on both hosts",
        ),
    }
}

fn own_key(node: &Node) -> Line {
    match Identity::load(&node.certificate, &node.key) {
        Ok(_) => Line::ok(
            "own key",
            format!("{} fits {}", node.key.display(), node.certificate.display()),
        ),
        Err(error) => Line::fail(
            "own key",
            whole_sentence(&error),
            format!("lockstep keys --dir DIR {} makes both", node.name),
        ),
    }
}

/// The certificate of `whom`.
fn pinned(name: &str, whom: &str, certificate: &Path) -> Line {
    let error = match PinnedPeer::load(certificate) {
        Ok(_) => return Line::ok(name, certificate.display().to_string()),
        Err(error) => error,
    };
    let remedy = match &error {
        IdentityError::Dates(DateError::Expired { .. }) => format!(
            "Make it and its key anew with lockstep keys --force, copy the .crt to every host and the .key to that of {whom}"
        ),
        IdentityError::Dates(DateError::NotYetValid { .. }) => {
            format!("Set the clocks of this host and of that of {whom}")
        }
        _ => format!("Copy it here from the host of {whom}"),
    };
    Line::fail(name, whole_sentence(&error), remedy)
}

fn address(node: &Node) -> Line {
    match UdpSocket::bind(node.listen) {
        Ok(_) => Line::ok("address", format!("{} can be listened on", node.listen)),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Line::note(
            "address",
            format!("{} is in use", node.listen),
            "Right if this node runs already",
        ),
        Err(error) => Line::fail(
            "address",
            format!("{} cannot be listened on: {error}", node.listen),
            format!("Give this host the address, or set node.{}.listen", node.name),
        ),
    }
}

fn directory(name: &str, path: &Path, remedy: &str) -> Line {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Line::ok(name, path.display().to_string()),
        Ok(_) => Line::fail(
            name,
            format!("{} is not a directory", path.display()),
            "Name a directory",
        ),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Line::note(name, format!("{} does not exist yet", path.display()), remedy)
        }
        Err(error) => Line::fail(
            name,
            format!("{}: {error}", path.display()),
            "Allow this user to enter it",
        ),
    }
}

fn tap(name: &str) -> Line {
    if Path::new("/sys/class/net").join(name).exists() {
        return Line::ok("tap", format!("{name} exists"));
    }
    Line::note(
        "tap",
        format!("{name} does not exist yet"),
        format!(
            "Made at the start with CAP_NET_ADMIN; else: ip tuntap add {name} mode tap vnet_hdr user USER"
        ),
    )
}

fn disk(path: &Path, mode: Option<DiskMode>) -> Line {
    let size = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .and_then(|mut file| file.seek(SeekFrom::End(0)));
    match size {
        Ok(0) => Line::fail(
            "disk",
            format!("{} is empty", path.display()),
            format!("Give it a size: truncate -s 256M {}", path.display()),
        ),
        Ok(size) => Line::ok(
            "disk",
            format!("{} opens for writing, {} MiB", path.display(), size >> 20),
        ),
        Err(error) => Line::fail(
            "disk",
            format!("{} cannot be opened for writing: {error}", path.display()),
            match mode {
                Some(DiskMode::Mirror) => {
                    "Name this host's own image of the disk, equal to the other host's, and let this user write to it"
                }
                Some(DiskMode::Shared) | None => {
                    "Name a file or block device that both hosts reach, and let this user write to it"
                }
            },
        ),
    }
}

/// Asks for the newest term, as the node does at its start.
fn arbiter(config: &Config, node: &Node) -> Line {
    const NAME: &str = "arbiter";
    let vm = match VmName::new(&config.vm.name) {
        Ok(vm) => vm,
        Err(error) => return Line::fail(NAME, whole_sentence(&error), "Give the VM another name"),
    };
    let remedy = match config.arbiter {
        Arbiter::File { .. } => {
            "Make the directory on a file system that both hosts share, and let both write to it"
        }
        Arbiter::Quic { .. } => "Start lockstep-arbiter there, and let it know this node's certificate",
    };
    let client = match ArbiterClient::open(&config.arbiter_of(node)) {
        Ok(client) => client,
        Err(error) => return Line::fail(NAME, whole_sentence(&error), remedy),
    };
    match client.read(&vm) {
        Ok(None) => Line::ok(NAME, format!("Answers; no term of {vm} yet")),
        Ok(Some((term, holder))) => Line::ok(
            NAME,
            format!("Answers; term {term} of {vm} is held by {}", holder.node),
        ),
        Err(error) => Line::fail(NAME, whole_sentence(&error), remedy),
    }
}
