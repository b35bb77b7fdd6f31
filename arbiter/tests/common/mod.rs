//! A real `lockstep-arbiter serve` with keys and a directory of its own, and clients of it.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(unreachable_pub, reason = "shared by the test files beside it")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lockstep_arbiter::client::ArbiterClient;
use lockstep_arbiter::config::ArbiterConfig;
use lockstep_arbiter::register::VmName;
use lockstep_protocol::ids::{Holder, Incarnation, NodeName, Term};
use lockstep_protocol::takeover::Verdict;
use lockstep_quic::dates::Validity;
use lockstep_quic::keys::{Existing, write_keys};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

pub const BINARY: &str = env!("CARGO_BIN_EXE_lockstep-arbiter");

pub fn vm() -> VmName {
    VmName::new("shop").unwrap()
}

pub fn holder(node: &str, incarnation: u128) -> Holder {
    Holder {
        node: NodeName::new(node).unwrap(),
        incarnation: Incarnation::new(incarnation),
    }
}

pub fn granted(term: u64) -> Verdict {
    Verdict::Granted {
        term: Term::new(term),
    }
}

/// The directory of one arbiter: keys of the arbiter, of nodes a and b, and of a stranger.
pub struct Site {
    pub dir: TempDir,
}

impl Site {
    pub fn new() -> Self {
        let dir = TempDir::new().unwrap();
        for name in ["arbiter", "a", "b", "stranger"] {
            write_keys(dir.path(), name, Validity::years(1), Existing::Keep).unwrap();
        }
        fs::create_dir(dir.path().join("terms")).unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the service; port 0 lets the system choose.
    pub fn serve(&self, port: u16) -> Service {
        let config = self.path("arbiter.toml");
        let text = format!(
            "listen = \"127.0.0.1:{port}\"\ndir = \"terms\"\ncertificate = \"arbiter.crt\"\nkey = \"arbiter.key\"\n\
             [client.a]\ncertificate = \"a.crt\"\n[client.b]\ncertificate = \"b.crt\"\nvms = [\"shop\"]\n"
        );
        fs::write(&config, text).unwrap();
        Service::start(&config)
    }

    /// How `node` reaches an arbiter at `address`.
    pub fn config(&self, node: &str, address: SocketAddr) -> ArbiterConfig {
        ArbiterConfig::Quic {
            address,
            certificate: self.path("arbiter.crt"),
            own_certificate: self.path(&format!("{node}.crt")),
            own_key: self.path(&format!("{node}.key")),
        }
    }

    pub fn client(&self, node: &str, service: &Service) -> ArbiterClient {
        ArbiterClient::open(&self.config(node, service.address)).unwrap()
    }
}

/// The running process.
pub struct Service {
    child: Child,
    pub address: SocketAddr,
}

impl Service {
    fn start(config: &Path) -> Self {
        let mut child = Command::new(BINARY)
            .args(["serve", "--config"])
            .arg(config)
            .env("RUST_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line
            .trim()
            .strip_prefix("listening on ")
            .unwrap()
            .parse()
            .unwrap();
        Self { child, address }
    }

    /// SIGKILL: no goodbye, no clean-up.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn stop(&self) {
        kill_process(self.pid(), Signal::STOP).unwrap();
    }

    pub fn go_on(&self) {
        kill_process(self.pid(), Signal::CONT).unwrap();
    }

    pub fn terminate(mut self) -> ExitStatus {
        kill_process(self.pid(), Signal::TERM).unwrap();
        self.child.wait().unwrap()
    }

    /// The same, if it ends in time; if not it is killed.
    pub fn terminate_within(mut self, limit: Duration) -> Option<ExitStatus> {
        kill_process(self.pid(), Signal::TERM).unwrap();
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        None
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
