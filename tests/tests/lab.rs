//! The parts of the lab that need no Lockstep: the Debian guest of its scenarios, booted by a stock QEMU.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lockstep_demo::outside::{self, Losses, Outside};
use lockstep_tests::lab::{guest_image, packages};
use lockstep_tests::qemu::processes::{Process, eventually};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(120);

#[test]
#[ignore = "needs QEMU, a kernel and redis: cargo xtask lab failover --install"]
fn what_the_debian_guest_acknowledged_is_on_its_disk_when_its_power_is_cut() {
    let folder = TempDir::new().unwrap();
    let disk = folder.path().join("disk.raw");
    guest_image::make_disk(&disk).unwrap();
    let guest = free_address();
    let mut machine = boot(folder.path(), &disk, guest);
    eventually("the guest to answer", PATIENCE, || {
        machine.check()?;
        Ok(outside::answers(guest)?.then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", console(folder.path())));

    let clients = Outside::start(guest, 2, 1).unwrap();
    eventually("replies", PATIENCE, || {
        Ok((clients.seen().acked > 200).then_some(()))
    })
    .unwrap();
    let memory = clients.stop().unwrap();
    assert_eq!((memory.seen().wrong, memory.seen().broken), (0, 0));
    drop(machine);

    assert_eq!(guest_image::fsck(&disk).unwrap(), Vec::<String>::new());
    guest_image::extract_data(&disk, folder.path()).unwrap();
    let left = free_address();
    let mut redis = Command::new("redis-server");
    redis
        .args(guest_image::REDIS)
        .args(["--bind", "127.0.0.1", "--port"])
        .arg(left.port().to_string());
    redis.arg("--dir").arg(folder.path().join(guest_image::DATA));
    let _redis = Process::start(redis.stdout(Stdio::null())).unwrap();
    eventually("redis to load what was left", PATIENCE, || {
        Ok(outside::answers(left)?.then_some(()))
    })
    .unwrap();
    assert_eq!(memory.read_back(left).unwrap(), Losses::default());
}

/// The same image as in the lab; here its devices are on a PCI bus.
fn boot(folder: &Path, disk: &Path, guest: SocketAddr) -> Process {
    let kernel = packages::kernel().unwrap();
    let image = guest_image::build(&folder.join("guest"), &kernel).unwrap();
    let forward = format!("user,id=net,hostfwd=tcp:{guest}-10.0.2.15:6379");
    let words = "console=ttyS0 quiet random.trust_cpu=on ip=10.0.2.15/24 gw=10.0.2.2";
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg", "-M", "q35", "-m", "192"])
        .args(["-nodefaults", "-no-reboot", "-display", "none"])
        .arg("-serial")
        .arg(format!("file:{}", folder.join("console").display()))
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(image)
        .args(["-append", words])
        .arg("-drive")
        .arg(format!("id=disk,if=none,format=raw,file={}", disk.display()))
        .args(["-device", "virtio-blk-pci,drive=disk"])
        .args(["-netdev", &forward, "-device", "virtio-net-pci,netdev=net"]);
    Process::start(qemu.stdin(Stdio::null())).unwrap()
}

fn console(folder: &Path) -> String {
    let bytes = std::fs::read(folder.join("console")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A port that nobody listened on a moment ago.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
