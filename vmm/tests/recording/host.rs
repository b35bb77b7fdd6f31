//! The recorded host: its device processes, and a network in which the kernel of this machine is the outside.

use lockstep_protocol::ids::DeviceId;
use lockstep_vmm::ft::port::DevicePort;
use lockstep_vmm::ft::wait::Waker;
use lockstep_vmm::stop::Stop;
use lockstep_vmm::virtio::mmio::DeviceKind;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::LinkUnspec;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use tempfile::TempDir;

const TAP: &str = "ls-replay";
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const DISK_BYTES: u64 = 64 << 20;
/// Set for a test that runs inside a user namespace already.
const INSIDE: &str = "LOCKSTEP_REPLAY_INSIDE_NAMESPACE";

/// Runs `test` where its threads may make network namespaces: here for root, else in a second run of this program
/// inside a user namespace.
pub(super) fn in_own_network(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() || thread::spawn(may_make_networks).join().expect("it only asks") {
        return test();
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
        "Run this as root, or allow user namespaces (`lockstep check` says how):\n{}\n{}",
        said(&output.stdout),
        said(&output.stderr)
    );
}

/// Moves the calling thread into a network namespace of its own, if that is allowed.
fn may_make_networks() -> bool {
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => true,
        Err(Errno::EPERM) => false,
        Err(error) => panic!("Cannot make a network namespace: {error}"),
    }
}

/// Device processes on a tap and a disk file; they die with this value.
pub(super) struct Host {
    dir: TempDir,
    processes: Vec<Child>,
}

impl Host {
    /// Moves the calling thread into a network of its own and starts the processes there.
    pub(super) fn start() -> Self {
        assert!(
            may_make_networks(),
            "Cannot make a network namespace: run this as root"
        );
        let mut host = Self {
            dir: tempfile::tempdir().unwrap(),
            processes: Vec::new(),
        };
        let disk = host.path("disk.raw");
        File::create_new(&disk).unwrap().set_len(DISK_BYTES).unwrap();
        host.spawn("net", &["--tap", TAP, "--mac", "52:54:00:4c:53:01"]);
        host.spawn("blk", &["--disk", disk.to_str().unwrap(), "--mode", "shared"]);
        host
    }

    /// Connects to the processes, and gives the tap an address: it exists as soon as its process listens.
    pub(super) fn connect(&self) -> Vec<DevicePort> {
        let ports = [(0, DeviceKind::Net, "net"), (1, DeviceKind::Blk, "blk")]
            .map(|(id, kind, name)| {
                let (vhost, staging) = (
                    self.path(&format!("{name}.sock")),
                    self.path(&format!("{name}-staging.sock")),
                );
                DevicePort::connect(DeviceId::new(id), kind, &vhost, &staging)
                    .expect("the device process answers")
            })
            .into();
        bring_up_tap();
        ports
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn spawn(&mut self, name: &str, arguments: &[&str]) {
        let lockstep = Path::new(env!("CARGO_BIN_EXE_lockstep"));
        let program = lockstep.with_file_name(format!("vhost-{name}-ft"));
        assert!(
            program.exists(),
            "{} is missing: build it with `cargo build -p vhost-net-ft -p vhost-blk-ft` (and this test's profile)",
            program.display()
        );
        let child = Command::new(program)
            .arg("--socket")
            .arg(self.path(&format!("{name}.sock")))
            .arg("--staging")
            .arg(self.path(&format!("{name}-staging.sock")))
            .args(arguments)
            .env("RUST_LOG", "warn")
            .spawn()
            .expect("the program can be started");
        self.processes.push(child);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for child in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn bring_up_tap() {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{TAP}/disable_ipv6"), "1");
    let index = nix::net::if_::if_nametoindex(TAP).expect("the tap is there");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (connection, netlink, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        netlink
            .address()
            .add(index, IpAddr::V4(OUTSIDE), 24)
            .execute()
            .await
            .unwrap();
        netlink
            .link()
            .set(LinkUnspec::new_with_index(index).up().build())
            .execute()
            .await
            .unwrap();
    });
}

/// Ends the run when the clients fail, so that the test does too instead of waiting for ever.
pub(super) struct StopOnPanic {
    pub(super) stop: Stop,
    pub(super) waker: Waker,
}

impl Drop for StopOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            self.stop.ask();
            self.waker.wake();
        }
    }
}
