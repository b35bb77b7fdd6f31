//! The binary under test as a child process.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use lockstep_staging::{DeviceFacts, DeviceKind, VmmEnd, VmmFacts};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-net-ft");
/// Each test has a namespace of its own, so one name does for all.
pub(crate) const TAP: &str = "lockstep0";
/// What it wrote to stderr, in its folder.
const LOG: &str = "log";
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Process {
    child: Child,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) socket: PathBuf,
    pub(crate) staging: PathBuf,
    pub(crate) tap: String,
}

impl Process {
    /// Starts it and waits until it listens.
    pub(crate) fn start(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (socket, staging) = (dir.path().join("vhost.sock"), dir.path().join("staging.sock"));
        let log = File::create(dir.path().join(LOG)).unwrap();
        let child = Command::new(BINARY)
            .args(["--tap", TAP, "--socket"])
            .arg(&socket)
            .arg("--staging")
            .arg(&staging)
            .args(more)
            .stderr(log)
            .spawn()
            .unwrap();
        let process = Self {
            child,
            dir,
            socket,
            staging,
            tap: TAP.to_owned(),
        };
        until("the process to listen", || {
            (process.socket.exists() && process.staging.exists()).then_some(())
        });
        process
    }

    pub(crate) fn connect_staging(&self) -> (VmmEnd, DeviceFacts) {
        // After a hang-up it takes a moment until the place is free again.
        until("staging", || {
            VmmEnd::connect(&self.staging, &vmm_facts(), PATIENCE).ok()
        })
    }

    /// Connects to the staging socket and says nothing.
    pub(crate) fn connect_and_leave(&self) {
        let stranger = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        connect(&stranger, &SocketAddrUnix::new(&self.staging).unwrap()).unwrap();
    }

    /// The line of its log that has these words.
    pub(crate) fn said(&self, words: &str) -> Option<String> {
        let log = std::fs::read_to_string(self.dir.path().join(LOG)).unwrap();
        log.lines().find(|line| line.contains(words)).map(str::to_owned)
    }

    pub(crate) fn open_descriptors(&self) -> usize {
        self.descriptors().len()
    }

    pub(crate) fn has_no_tap(&self) -> bool {
        !self.descriptors().contains(&PathBuf::from("/dev/net/tun"))
    }

    /// What its descriptors lead to.
    fn descriptors(&self) -> Vec<PathBuf> {
        let listed = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        listed
            .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
            .collect()
    }

    pub(crate) fn terminate(&mut self) -> ExitStatus {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Shown when the test fails.
        eprint!("{}", std::fs::read_to_string(self.dir.path().join(LOG)).unwrap());
    }
}

pub(crate) fn vmm_facts() -> VmmFacts {
    VmmFacts {
        kind: DeviceKind::Net,
        compares_images: false,
        release: "a test".to_owned(),
    }
}

/// Runs it until it ends by itself; says how, and what it wrote to stderr.
pub(crate) fn run_to_end(args: &[&str]) -> (ExitStatus, String) {
    let child = Command::new(BINARY)
        .args(args)
        .env("RUST_LOG", "off")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status, String::from_utf8(output.stderr).unwrap())
}

/// Asks again and again until there is an answer.
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}
