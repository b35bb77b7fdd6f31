//! A stock kernel under QEMU uses vhost-blk-ft and vhost-net-ft as any other back-ends. Run by `cargo xtask qemu-plain`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lockstep_tests::qemu::initramfs::{self, DISCARD_AT, DISCARD_BYTES, GUEST, HOST, PORT, WRITE_AT};
use lockstep_tests::qemu::machine::{Machine, PATIENCE, Parts};
use lockstep_tests::qemu::packages::Kernel;
use lockstep_tests::qemu::processes::{Process, eventually};
use lockstep_tests::qemu::suite::{FOLDER_VARIABLE, executable};
use tempfile::TempDir;

const DISK_BYTES: usize = 32 << 20;
const PATTERN_BYTES: usize = 1 << 20;
const MESSAGE_BYTES: usize = 3 << 20;

#[test]
#[ignore = "needs QEMU and a kernel: cargo xtask qemu-plain"]
fn a_stock_guest_finds_its_disk_whole_writes_to_it_and_talks_over_tcp() {
    let world = World::new();
    let mut machine = world.boot("lockstep.write", "console-1");

    assert_eq!(machine.said("size").unwrap(), DISK_BYTES.to_string());
    assert_eq!(machine.said("serial").unwrap(), "qemu-plain");
    assert_eq!(machine.said("queues").unwrap(), "2");
    assert_eq!(machine.said("before").unwrap(), checksum(&noise(1, DISK_BYTES)));

    assert_eq!(machine.said("written").unwrap(), "0");
    assert_eq!(world.on_disk(WRITE_AT, PATTERN_BYTES), noise(2, PATTERN_BYTES));
    assert_eq!(machine.said("discarded").unwrap(), "0");
    assert_eq!(
        machine.said("after").unwrap(),
        checksum(&world.on_disk(0, DISK_BYTES))
    );

    assert_eq!(machine.said("network").unwrap(), "52:54:00:12:34:56");
    let message = noise(3, MESSAGE_BYTES);
    let returned = exchange(&message);
    assert_eq!(machine.said("received").unwrap(), checksum(&message));
    assert_eq!(machine.said("returned").unwrap(), "0");
    assert!(returned == message, "what came back is not what was sent");
    machine.wait().unwrap();

    // The same processes serve the next front-end, and everything but the written and discarded parts is untouched.
    let mut expected = noise(1, DISK_BYTES);
    expected[WRITE_AT as usize..][..PATTERN_BYTES].copy_from_slice(&noise(2, PATTERN_BYTES));
    let discarded = world.on_disk(DISCARD_AT, DISCARD_BYTES as usize);
    expected[DISCARD_AT as usize..][..DISCARD_BYTES as usize].copy_from_slice(&discarded);
    let mut again = world.boot("", "console-2");
    assert_eq!(again.said("before").unwrap(), checksum(&expected));
    again.wait().unwrap();
}

/// A folder, a disk, a tap, and the two processes under test.
struct World {
    folder: TempDir,
    kernel: Kernel,
    initramfs: PathBuf,
    _processes: [Process; 2],
}

impl World {
    fn new() -> Self {
        let assets = std::env::var_os(FOLDER_VARIABLE).expect("run this with `cargo xtask qemu-plain`");
        let kernel = Kernel::find(Path::new(&assets)).unwrap();
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("disk.img"), noise(1, DISK_BYTES)).unwrap();
        let initramfs = initramfs::build(folder.path(), &kernel, &noise(2, PATTERN_BYTES)).unwrap();

        ip("link set lo up");
        ip("tuntap add tap0 mode tap vnet_hdr");
        ip(&format!("addr add {HOST}/24 dev tap0"));
        ip("link set tap0 up");
        let mut disk = Command::new(executable("vhost-blk-ft"));
        disk.arg("--socket").arg(folder.path().join("blk.sock"));
        disk.arg("--disk")
            .arg(folder.path().join("disk.img"))
            .args(["--serial", "qemu-plain"]);
        let mut network = Command::new(executable("vhost-net-ft"));
        network
            .arg("--socket")
            .arg(folder.path().join("net.sock"))
            .args(["--tap", "tap0"]);
        let processes = [&mut disk, &mut network].map(|command| Process::start(command).unwrap());
        let world = Self {
            folder,
            kernel,
            initramfs,
            _processes: processes,
        };
        let sockets = [world.path("blk.sock"), world.path("net.sock")];
        let listening = || Ok(sockets.iter().all(|socket| socket.exists()).then_some(()));
        eventually("the device processes to listen", PATIENCE, listening).unwrap();
        world
    }

    fn boot(&self, words: &str, console: &str) -> Machine {
        let parts = Parts {
            kernel: &self.kernel,
            initramfs: &self.initramfs,
            disk: &self.path("blk.sock"),
            network: &self.path("net.sock"),
            words,
        };
        Machine::start(&parts, self.path(console)).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn on_disk(&self, at: u64, bytes: usize) -> Vec<u8> {
        let mut content = vec![0; bytes];
        File::open(self.path("disk.img"))
            .unwrap()
            .read_exact_at(&mut content, at)
            .unwrap();
        content
    }
}

/// Sends the guest a message and takes what it sends back.
fn exchange(message: &[u8]) -> Vec<u8> {
    let listener = TcpListener::bind((HOST, PORT)).unwrap();
    let guest: SocketAddr = format!("{GUEST}:{PORT}").parse().unwrap();
    let connect = || Ok(TcpStream::connect_timeout(&guest, Duration::from_secs(2)).ok());
    let mut there = eventually("the guest to listen", PATIENCE, connect).unwrap();
    there.set_write_timeout(Some(PATIENCE)).unwrap();
    there.write_all(message).unwrap();
    there.shutdown(Shutdown::Write).unwrap();

    listener.set_nonblocking(true).unwrap();
    let (mut back, _) = eventually("the guest to connect", PATIENCE, || Ok(listener.accept().ok())).unwrap();
    back.set_nonblocking(false).unwrap();
    back.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut returned = Vec::new();
    back.read_to_end(&mut returned).unwrap();
    returned
}

fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().unwrap();
    assert!(status.success(), "ip {words} failed");
}

fn checksum(bytes: &[u8]) -> String {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let output = Command::new("sha256sum").arg(file.path()).output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned()
}

/// Bytes that look random and are the same for the same seed.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let word = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    word.flatten().take(bytes).collect()
}
