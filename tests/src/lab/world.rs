//! The world of one story: two emulated hosts, their disk, an arbiter on the test machine, keys and a configuration.
//!
//! Scenarios build one, start and stop nodes in it, and pull plugs. All of it is gone with the value, except the logs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use lockstep_demo::outside;
use serde_json::Value;

use super::agent;
use super::config::{self, Disks, Guest};
use super::host::{self, Host};
use super::host_image::{CONSOLE_PORT, LOG_PORT, PROGRAMS};
use super::pgbench;
use super::wires::{NODES, Node, Wire};
use crate::qemu::packages::Kernel;
use crate::qemu::processes::{Process, eventually};

/// What all worlds of one lab share.
#[derive(Debug)]
pub struct Setting {
    /// What the VM boots.
    pub guest: Guest,
    /// How many vCPUs the VM has.
    pub vcpus: u8,
    /// Whose its disk is.
    pub disks: Disks,
    /// The kernel of hosts and guests.
    pub kernel: Kernel,
    /// The image of the hosts.
    pub image: PathBuf,
    /// The file system that the guest starts from, if it has one.
    pub initramfs: Option<PathBuf>,
    /// What the guest's disk is at first.
    pub disk: PathBuf,
    /// The folder with our programs.
    pub programs: PathBuf,
    /// The lab's folder; each world has one in it.
    pub folder: PathBuf,
}

/// Whether a VM is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// One host, nothing else.
    None,
    /// Both hosts.
    Pair,
}

/// The world.
#[derive(Debug)]
pub struct World {
    hosts: [Host; 2],
    guest: Guest,
    vcpus: u8,
    disks: Disks,
    folder: PathBuf,
    arbiter: Option<Process>,
}

impl World {
    /// Lays everything out and boots both hosts. The wires must have been laid.
    pub fn build(setting: &Setting, name: &str) -> anyhow::Result<Self> {
        let folder = setting.folder.join(name);
        fs::create_dir_all(&folder)?;
        let lockstep = setting.programs.join("lockstep");
        make_keys(&lockstep, &folder.join("keys"))?;
        for node in NODES {
            copy_disk(&setting.disk, &disk(&folder, setting.disks, node))?;
        }
        let arbiter = start_arbiter(&setting.programs, &folder)?;
        let [a, b] = NODES.map(|node| {
            let parts = host::Parts {
                kernel: &setting.kernel,
                image: &setting.image,
                disk: &disk(&folder, setting.disks, node),
                logs: &folder,
            };
            Host::start(node, &parts)
        });
        let mut world = Self {
            hosts: [a?, b?],
            guest: setting.guest,
            vcpus: setting.vcpus,
            disks: setting.disks,
            folder,
            arbiter: Some(arbiter),
        };
        for node in NODES {
            world.host_mut(node).wait_until_ready()?;
            world.configure(node)?;
        }
        Ok(world)
    }

    /// One of the hosts.
    pub fn host(&self, node: Node) -> &Host {
        &self.hosts[usize::from(node.number() - 1)]
    }

    /// The same, to do something to it.
    pub fn host_mut(&mut self, node: Node) -> &mut Host {
        &mut self.hosts[usize::from(node.number() - 1)]
    }

    /// The disk as a host left it. Look at it when both are dead.
    pub fn disk(&self, node: Node) -> PathBuf {
        disk(&self.folder, self.disks, node)
    }

    /// A folder for what a scenario leaves.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts the VM and waits until its server answers. An unprotected one runs on host a.
    pub fn power_on(&mut self, protection: Protection) -> anyhow::Result<()> {
        match protection {
            Protection::None => self.start(Node::A, "primary", config::ALONE, "--alone")?,
            Protection::Pair => {
                self.start(Node::B, "backup", config::PAIR, "")?;
                self.start(Node::A, "primary", config::PAIR, "")?;
            }
        }
        let role = match protection {
            Protection::None => "alone",
            Protection::Pair => "primary",
        };
        self.wait_until_up(role).with_context(|| self.last_words())
    }

    fn wait_until_up(&mut self, role: &str) -> anyhow::Result<()> {
        eventually(&format!("node a to be {role}"), START_TIME, || {
            let status = self.status_if_running(Node::A)?;
            Ok((status["role"] == role).then_some(()))
        })?;
        let patience = self.guest.boot_time();
        let mut asked = 0_u32;
        eventually("the guest's server to answer", patience, || {
            if answers(self.guest)? {
                return Ok(Some(()));
            }
            // Seldom: it costs the host more than it costs us.
            asked += 1;
            if asked.is_multiple_of(ASKED_A_LOOK) {
                self.status_if_running(Node::A)?;
            }
            Ok(None)
        })
    }

    /// Switches a host on again whose power was cut.
    pub fn switch_on(&mut self, setting: &Setting, node: Node) -> anyhow::Result<()> {
        let parts = host::Parts {
            kernel: &setting.kernel,
            image: &setting.image,
            disk: &self.disk(node),
            logs: &self.folder,
        };
        *self.host_mut(node) = Host::start(node, &parts)?;
        self.host_mut(node).wait_until_ready()?;
        self.configure(node)
    }

    /// Starts a spare on a host.
    pub fn start_spare(&self, node: Node) -> anyhow::Result<()> {
        self.start_as(node, "standby", config::PAIR)
    }

    /// Copies host a's image of a mirrored disk over host b's, as one has to after host a ran the VM alone. No node may run.
    pub fn copy_image(&self) -> anyhow::Result<()> {
        match self.disks {
            Disks::Shared => Ok(()),
            Disks::Mirror => copy_disk(&self.disk(Node::A), &self.disk(Node::B)),
        }
    }

    /// Ends the arbiter, for a story that brings its own.
    pub fn dismiss_arbiter(&mut self) {
        self.arbiter = None;
    }

    /// Starts a node by a command line of one's own, and keeps its log, and what its console's socket says.
    pub fn start_by_hand(&self, node: Node, line: &str, console: &str) -> anyhow::Result<()> {
        self.host(node)
            .run(&format!(
                "setsid {line} > {LOG_PORT} 2>&1 < /dev/null &\n\
                 setsid socat -u UNIX-CONNECT:{console},retry=60,interval=1 OPEN:{CONSOLE_PORT} > /dev/null 2>&1 < /dev/null &"
            ))
            .map(drop)
    }

    /// Ends the VM on all living hosts.
    pub fn power_off(&mut self) -> anyhow::Result<()> {
        for node in NODES {
            self.host(node).run(
                "kill $(pidof lockstep) || true; while pidof lockstep > /dev/null; do usleep 100000; done",
            )?;
        }
        Ok(())
    }

    /// The node that talks to the outside; an error unless it is exactly one.
    pub fn live(&self) -> anyhow::Result<Node> {
        let is_live = |node: &Node| {
            let status = self.status(*node);
            status.is_ok_and(|status| matches!(status["role"].as_str(), Some("primary" | "alone")))
        };
        match NODES.into_iter().filter(is_live).collect::<Vec<_>>().as_slice() {
            [node] => Ok(*node),
            [] => bail!("No host is live. {}", self.last_words()),
            _ => bail!("Both hosts are live. {}", self.last_words()),
        }
    }

    /// What a node says of itself.
    pub fn status(&self, node: Node) -> anyhow::Result<Value> {
        let script = format!("lockstep status --run-dir {} --json", config::run_dir(node));
        let said = self.host(node).run(&script)?;
        let line = said.lines().last().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("Node {} said {line:?}", node.name()))
    }

    /// Makes a wire slow and lossy, from now on and both ways. In words of netem, as in `delay 25ms loss 1%`.
    pub fn worsen(&self, wire: Wire, words: &str) -> anyhow::Result<()> {
        for node in NODES {
            let device = wire.name();
            self.host(node).run(&format!(
                "{PROGRAMS}/tc qdisc replace dev {device} root netem {words}"
            ))?;
        }
        Ok(())
    }

    /// The last lines of every console and log, for an error message.
    pub fn last_words(&self) -> String {
        let mut words = String::from("The last lines of the hosts' consoles and logs:");
        for (host, name) in self
            .hosts
            .iter()
            .flat_map(|host| ["host", "log", "guest"].map(|name| (host, name)))
        {
            let text = host.read(name);
            let lines: Vec<_> = text.lines().rev().take(LAST_LINES).collect();
            for line in lines.iter().rev() {
                words.push_str(&format!("\n  {}.{name}: {}", host.node().name(), line.trim_end()));
            }
        }
        words
    }

    /// Types at the guest's console on a node.
    pub fn type_at(&self, node: Node, line: &str) -> anyhow::Result<()> {
        self.host(node).run(&format!("echo '{line}' > {TYPED}")).map(drop)
    }

    /// What a host's own clock says, since 1970.
    pub fn clock(&self, node: Node) -> anyhow::Result<Duration> {
        let said = self.host(node).run("adjtimex")?;
        let number = |name: &str| {
            let line = said.lines().find(|line| line.contains(name))?;
            line.split_whitespace().next_back()?.parse().ok()
        };
        let (seconds, micros) = number("tv_sec")
            .zip(number("tv_usec"))
            .with_context(|| format!("Host {} does not tell the time: {said}", node.name()))?;
        Ok(Duration::from_secs(seconds) + Duration::from_micros(micros))
    }

    /// The exit status of a node, once it has ended.
    pub fn ended(&self, node: Node) -> anyhow::Result<Option<i32>> {
        let said = self
            .host(node)
            .run(&format!("cat {ENDED} 2> /dev/null || true"))?;
        Ok(said.trim().parse().ok())
    }

    fn start(&self, node: Node, role: &str, config: &str, more: &str) -> anyhow::Result<()> {
        self.start_as(node, &format!("run --role {role} {more}"), config)
    }

    fn start_as(&self, node: Node, command: &str, config: &str) -> anyhow::Result<()> {
        let name = node.name();
        self.host(node)
            .run(&format!(
                "cd {DIR}; rm -f {ENDED} {TYPED}; mkfifo {TYPED}\n\
                 (LOCKSTEP_LOG=info setsid lockstep {command} --config {config} --node {name} <> {TYPED}; \
                 echo $? > {ENDED}) > {CONSOLE_PORT} 2> {LOG_PORT} < /dev/null &"
            ))
            .map(drop)
    }

    /// The status of a node that may not listen yet; an error if it has ended.
    pub fn status_if_running(&mut self, node: Node) -> anyhow::Result<Value> {
        self.host_mut(node).check()?;
        match self.status(node) {
            Ok(status) => Ok(status),
            Err(_) if self.host(node).run("pidof lockstep").is_ok() => Ok(Value::Null),
            Err(error) => Err(error.context(format!("Node {} ended", node.name()))),
        }
    }

    fn configure(&self, node: Node) -> anyhow::Result<()> {
        let keys = self.folder.join("keys");
        let mut script = String::new();
        let name = node.name();
        for file in ["a.crt", "b.crt", "arbiter.crt", &format!("{name}.key")] {
            script.push_str(&agent::put(
                &format!("{DIR}/keys/{file}"),
                &fs::read(keys.join(file))?,
            ));
        }
        script.push_str(&format!("chmod 600 {DIR}/keys/{name}.key\n"));
        for (file, vm) in [(config::PAIR, "lab"), (config::ALONE, "lab-alone")] {
            let text = config::toml(self.guest, self.vcpus, self.disks, vm);
            script.push_str(&agent::put(&format!("{DIR}/{file}"), text.as_bytes()));
        }
        self.host(node).run(&script).map(drop)
    }
}

/// Whether the guest's server answers now.
fn answers(guest: Guest) -> anyhow::Result<bool> {
    match guest {
        Guest::Micro | Guest::Debian => outside::answers(guest.server()),
        Guest::Postgres => pgbench::answers(guest.server()),
    }
}

fn make_keys(lockstep: &Path, folder: &Path) -> anyhow::Result<()> {
    let made = Command::new(lockstep)
        .args(["keys", "--dir"])
        .arg(folder)
        .args(["a", "b", "arbiter"])
        .output()
        .context("Cannot run lockstep keys")?;
    if !made.status.success() {
        bail!("No keys: {}", String::from_utf8_lossy(&made.stderr).trim());
    }
    Ok(())
}

fn disk(folder: &Path, disks: Disks, node: Node) -> PathBuf {
    match disks {
        Disks::Shared => folder.join("disk.raw"),
        Disks::Mirror => folder.join(format!("disk-{}.raw", node.name())),
    }
}

/// A copy of a disk that is sparse where it holds nothing.
fn copy_disk(from: &Path, to: &Path) -> anyhow::Result<()> {
    let status = Command::new("cp")
        .arg("--sparse=always")
        .args([from, to])
        .status()
        .context("Cannot run cp")?;
    match status.success() {
        true => Ok(()),
        false => bail!("Cannot copy {} to {}", from.display(), to.display()),
    }
}

fn start_arbiter(programs: &Path, folder: &Path) -> anyhow::Result<Process> {
    fs::create_dir_all(folder.join("terms"))?;
    let path = folder.join("arbiter.toml");
    fs::write(&path, config::arbiter_toml())?;
    let log = File::create(folder.join("arbiter.log"))?;
    let mut command = Command::new(programs.join("lockstep-arbiter"));
    command.arg("serve").arg("--config").arg(path);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Process::start(&mut command)
}

/// What is written here on a host is typed at the guest's console.
const TYPED: &str = "/run/typed";
/// Where the exit status of `lockstep run` is left on a host.
const ENDED: &str = "/run/ended";
/// Where configuration and keys lie on a host.
const DIR: &str = "/lab";
/// Many times as long as it ever took on a machine that does nothing else; both hosts read their images first.
const START_TIME: Duration = Duration::from_secs(300);
/// Questions that the guest does not answer before a look at whether its host still runs it.
const ASKED_A_LOOK: u32 = 8;
const LAST_LINES: usize = 8;
