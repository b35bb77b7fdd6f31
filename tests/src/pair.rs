//! A pair of hosts for a story: keys, disks, arbiter directory and configuration in a directory of its own, and nodes as
//! process groups that are gone with their values.
//!
//! Stories make one inside [`crate::network::alone`]. What it starts is `lockstep run`, as an operator
//! would. `lockstep demo` has a world of its own; this one is for stories in which a pair is refused, or asked by
//! others than the demo's clients.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::qemu::processes::eventually;
use crate::redis::cli;
use crate::{network, programs};

/// Where the backup of a pair listens.
pub const BACKUP_ADDRESS: &str = "127.0.0.3:7001";
const DISK_BYTES: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// What both hosts have in common, and the directory in which all of it lies.
pub struct Pair {
    dir: TempDir,
    lockstep: PathBuf,
    config: String,
}

impl Pair {
    /// Lays everything out as it should be, with one disk for both hosts; stories break it afterwards.
    pub fn new() -> anyhow::Result<Self> {
        let pair = Self::with(CONFIG.to_owned())?;
        pair.make_disk("disk.raw")?;
        Ok(pair)
    }

    /// The same, but each host has an image of its own: `disk-a.raw` and `disk-b.raw`.
    pub fn mirrored() -> anyhow::Result<Self> {
        let mut config = CONFIG.replace("mode = \"shared\"", "mode = \"mirror\"");
        for node in ["a", "b"] {
            let run_dir = format!("run_dir = \"{node}\"");
            let shared = format!("disk = \"disk.raw\"\n{run_dir}");
            config = config.replace(&shared, &format!("disk = \"disk-{node}.raw\"\n{run_dir}"));
        }
        let pair = Self::with(config)?;
        pair.make_disk("disk-a.raw")?;
        pair.make_disk("disk-b.raw")?;
        Ok(pair)
    }

    /// Two hosts and a spare `c`, with one disk for all.
    pub fn with_spare() -> anyhow::Result<Self> {
        let spare = node_b()
            .replace("node.b", "node.c")
            .replace("127.0.0.3", "127.0.0.5");
        let spare = spare.replace("keys/b", "keys/c").replace("ls-b", "ls-c");
        let spare = spare.replace("run_dir = \"b\"", "run_dir = \"c\"\nspare = true");
        let pair = Self::with(format!("{CONFIG}\n{spare}"))?;
        pair.make_disk("disk.raw")?;
        Ok(pair)
    }

    fn with(config: String) -> anyhow::Result<Self> {
        ensure!(
            File::options().read(true).write(true).open("/dev/kvm").is_ok(),
            "These stories need a usable /dev/kvm: `lockstep check` names the remedy"
        );
        let lockstep = programs::find("lockstep")?;
        let dir = tempfile::Builder::new().prefix("lockstep-").tempdir()?;
        let pair = Self {
            dir,
            lockstep,
            config,
        };
        pair.make_keys("keys", &["a", "b", "c"])?;
        fs::create_dir(pair.path("arbiter"))?;
        fs::write(pair.path("vm.toml"), &pair.config)?;
        Ok(pair)
    }

    /// Makes a disk that holds nothing yet.
    pub fn make_disk(&self, name: &str) -> anyhow::Result<()> {
        Ok(File::create_new(self.path(name))?.set_len(DISK_BYTES)?)
    }

    /// A path in the pair's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes keys with `lockstep keys`.
    pub fn make_keys(&self, dir: &str, names: &[&str]) -> anyhow::Result<()> {
        let made = Command::new(&self.lockstep)
            .args(["keys", "--dir"])
            .arg(self.path(dir))
            .args(names)
            .output()?;
        ensure!(
            made.status.success(),
            "lockstep keys failed: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        Ok(())
    }

    /// A configuration like the pair's own but for one text in it.
    pub fn changed_config(&self, from: &str, to: &str) -> anyhow::Result<PathBuf> {
        ensure!(self.config.contains(from), "the configuration has no {from:?}");
        let path = self.path("changed.toml");
        fs::write(&path, self.config.replace(from, to))?;
        Ok(path)
    }

    /// Starts a node with the pair's configuration.
    pub fn start(&self, node: &str, role: &str) -> anyhow::Result<Node> {
        self.start_with(&self.path("vm.toml"), node, role)
    }

    /// Starts a node with a configuration of its own.
    pub fn start_with(&self, config: &Path, node: &str, role: &str) -> anyhow::Result<Node> {
        self.start_more(config, node, role, &[])
    }

    /// Starts a node with more arguments of `lockstep run`.
    pub fn start_more(&self, config: &Path, node: &str, role: &str, more: &[&str]) -> anyhow::Result<Node> {
        let command = [&["run", "--role", role], more].concat();
        self.start_command(config, node, role, &command)
    }

    /// Starts node a alone, with more arguments of `lockstep run`, and lets it speak to the clients.
    pub fn start_alone(&self, config: &Path, more: &[&str]) -> anyhow::Result<Node> {
        let alone = [&["--alone"], more].concat();
        let mut node = self.start_more(config, "a", "primary", &alone)?;
        node.wait_until_role("alone")?;
        plug(&["a"])?;
        Ok(node)
    }

    /// Starts a node as a spare.
    pub fn start_spare(&self, node: &str) -> anyhow::Result<Node> {
        self.start_spare_with(&self.path("vm.toml"), node)
    }

    /// Starts a node as a spare with a configuration of its own.
    pub fn start_spare_with(&self, config: &Path, node: &str) -> anyhow::Result<Node> {
        self.start_command(config, node, "standby", &["standby"])
    }

    fn start_command(&self, config: &Path, node: &str, role: &str, command: &[&str]) -> anyhow::Result<Node> {
        let log = self.path(&format!("{node}-{role}.log"));
        let child = Command::new(&self.lockstep)
            .args(command)
            .args(["--node", node, "--die-with-parent", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::options().create(true).append(true).open(&log)?)
            .process_group(0)
            .spawn()
            .context("Cannot start lockstep")?;
        let group = Pid::from_raw(child.id().cast_signed());
        Ok(Node {
            name: format!("{node} as {role}"),
            child,
            group,
            log,
            control: self.path(node).join("control.sock"),
        })
    }

    /// Has a node write a snapshot, and returns what the command said.
    pub fn snapshot(&self, node: &str, file: &str) -> anyhow::Result<String> {
        let taken = Command::new(&self.lockstep)
            .args(["snapshot", "--node", node, "--config"])
            .arg(self.path("vm.toml"))
            .arg("--to")
            .arg(self.path(file))
            .output()?;
        ensure!(
            taken.status.success(),
            "lockstep snapshot failed: {}",
            String::from_utf8_lossy(&taken.stderr)
        );
        Ok(String::from_utf8(taken.stdout)?)
    }

    /// A pair with an image each: whether both hold the same.
    pub fn has_same_images(&self) -> anyhow::Result<bool> {
        Ok(fs::read(self.path("disk-a.raw"))? == fs::read(self.path("disk-b.raw"))?)
    }

    /// Starts both nodes and waits until the guest is protected and its taps are on the bridge.
    pub fn start_both(&self) -> anyhow::Result<(Node, Node)> {
        let mut b = self.start("b", "backup")?;
        let mut a = self.start("a", "primary")?;
        a.wait_until_role("primary")?;
        b.wait_until_role("backup")?;
        plug(&["a", "b"])?;
        Ok((a, b))
    }
}

/// The table of node b.
fn node_b() -> &'static str {
    CONFIG.find("[node.b]").map_or("", |start| &CONFIG[start..])
}

/// The guest switches itself off, which ends both hosts in good order.
pub fn power_off(primary: &mut Node, backup: &mut Node) -> anyhow::Result<()> {
    cli("SHUTDOWN")?;
    for node in [primary, backup] {
        let (code, words) = node.wait_for_end()?;
        ensure!(code == Some(0), "Node {} ended with {code:?}: {words}", node.name);
    }
    Ok(())
}

/// Puts the taps of these nodes on the bridge, once they are there.
pub fn plug(nodes: &[&str]) -> anyhow::Result<()> {
    for node in nodes {
        let tap = format!("ls-{node}");
        eventually("a tap", PATIENCE, || Ok(network::has(&tap).then_some(())))?;
        network::plug(&tap)?;
    }
    Ok(())
}

/// A node: the process group of one `lockstep run`.
pub struct Node {
    name: String,
    child: Child,
    group: Pid,
    log: PathBuf,
    control: PathBuf,
}

impl Node {
    /// What the node says of itself, if it answers.
    pub fn status(&self) -> Option<Value> {
        let mut stream = UnixStream::connect(&self.control).ok()?;
        stream.write_all(b"status\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Waits until the node plays this part.
    pub fn wait_until_role(&mut self, role: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if status.as_ref().is_some_and(|status| status["role"] == role) {
                return Ok(());
            }
            if let Some(end) = self.child.try_wait()? {
                bail!("Node {} ended ({end}): {}", self.name, self.log());
            }
            ensure!(
                Instant::now() < deadline,
                "Node {} did not become {role}: {}",
                self.name,
                self.log()
            );
            std::thread::sleep(POLL);
        }
    }

    /// Waits until a text is in the node's log.
    pub fn wait_until_logged(&self, text: &str) -> anyhow::Result<()> {
        eventually(&format!("{text:?} in the log of {}", self.name), PATIENCE, || {
            Ok(self.log().contains(text).then_some(()))
        })
    }

    /// Waits for the node to end and returns its exit code, if it has one, and what it said last: the sentences after
    /// its log lines, one cause after the other.
    pub fn wait_for_end(&mut self) -> anyhow::Result<(Option<i32>, String)> {
        let child = &mut self.child;
        let ended = eventually("the node to end", PATIENCE, || Ok(child.try_wait()?))
            .with_context(|| format!("Node {} goes on: {}", self.name, self.log()))?;
        let log = self.log();
        let words: Vec<_> = log
            .lines()
            .filter_map(|line| line.strip_prefix("lockstep: "))
            .collect();
        Ok((ended.code(), words.join(": ")))
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Everything it wrote to standard error.
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Asks it to stop, as an operator would.
    pub fn stop(&mut self) {
        // It may have ended already, which is what it is asked for.
        let _ = kill(self.group, Signal::SIGTERM);
    }

    /// Sends a signal to one of its device processes, `net` or `blk`.
    pub fn signal_device(&self, kind: &str, signal: Signal) -> anyhow::Result<()> {
        let status = self.status().context("The node does not answer")?;
        let devices = status["devices"].as_array().context("It has no devices")?;
        let device = devices.iter().find(|device| device["kind"] == kind);
        let pid = device.and_then(|device| device["pid"].as_i64());
        let pid = i32::try_from(pid.context("It has no such device")?)?;
        Ok(kill(Pid::from_raw(pid), signal)?)
    }

    /// The power cut.
    pub fn kill(&mut self) {
        // It may be gone already, which is what a kill wants.
        let _ = killpg(self.group, Signal::SIGKILL);
        let _ = self.child.wait();
        let deadline = Instant::now() + PATIENCE;
        while killpg(self.group, None) != Err(Errno::ESRCH) && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

const POLL: Duration = Duration::from_millis(10);

/// What an operator would write; paths are relative to the file.
const CONFIG: &str = r#"[vm]
name = "story"
memory_mib = 64
cmdline = "ip=10.77.0.2/24 gw=10.77.0.1 port=6379"
[vm.net]
mac = "52:54:00:4c:53:01"
[vm.disk]
mode = "shared"

[pair]
heartbeat_ms = 20

[arbiter]
kind = "file"
dir = "arbiter"

[node.a]
address = "127.0.0.2:7001"
certificate = "keys/a.crt"
key = "keys/a.key"
tap = "ls-a"
disk = "disk.raw"
run_dir = "a"

[node.b]
address = "127.0.0.3:7001"
certificate = "keys/b.crt"
key = "keys/b.key"
tap = "ls-b"
disk = "disk.raw"
run_dir = "b"
"#;
