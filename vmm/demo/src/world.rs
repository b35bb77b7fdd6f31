//! A small world on one machine: a network of its own, two hosts as process groups, an arbiter, a shared disk or two
//! images of one, and perhaps a wire between the hosts that can be cut.
//!
//! The demo and the bench build one with [`World::new`] and start hosts in it. Whatever happens to this process (its
//! end, an interrupt, a panic), no process of the world survives it, and the temporary directory goes too unless it
//! was asked to stay.

pub(crate) mod config;
pub(crate) mod hosts;
pub(crate) mod namespace;
pub(crate) mod relay;
pub(crate) mod status;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use self::config::{Layout, Wire};
use self::hosts::{Host, Output};
use self::namespace::Network;
use self::relay::Relay;
use crate::args::{Arbiter, Disk};

/// What kind of world.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    /// Who hands out terms.
    pub(crate) arbiter: Arbiter,
    /// How the hosts have the guest's disk.
    pub(crate) disk: Disk,
    /// How many vCPUs the VM has.
    pub(crate) vcpus: u8,
    /// Whether the wire between the hosts goes through a relay that can drop everything.
    pub(crate) relay: bool,
    /// Where to leave everything, or nowhere.
    pub(crate) keep: Option<PathBuf>,
    /// Whether the hosts' own log lines show.
    pub(crate) verbose: bool,
}

/// The world. Its hosts die with it.
pub(crate) struct World {
    layout: Layout,
    lockstep: PathBuf,
    output: Output,
    relay: Option<Relay>,
    arbiter: Option<Host>,
    network: Network,
    // Last: the directory goes after everything that lives in it.
    _temporary: Option<tempfile::TempDir>,
}

impl World {
    /// Lays out files, keys and arbiter, for hosts that run this very program. The network namespace must have been
    /// entered already.
    pub(crate) async fn new(wish: &Wish, network: Network) -> anyhow::Result<Self> {
        let lockstep = std::env::current_exe().context("Cannot tell where this executable is")?;
        Self::of(lockstep, wish, network).await
    }

    /// The same for hosts that run `lockstep`.
    pub(crate) async fn of(lockstep: PathBuf, wish: &Wish, network: Network) -> anyhow::Result<Self> {
        let (dir, temporary) = directory(wish.keep.as_deref())?;
        let wire = if wish.relay { Wire::Relayed } else { Wire::Straight };
        let layout = Layout {
            dir,
            arbiter: wish.arbiter,
            wire,
            disk: wish.disk,
            vcpus: wish.vcpus,
        };
        let output = if wish.verbose {
            Output::Show
        } else {
            Output::Log(layout.dir.clone())
        };
        make_keys(&lockstep, &layout)?;
        layout.disks().iter().try_for_each(|disk| make_disk(disk))?;
        fs::create_dir_all(layout.arbiter_dir()).context("Cannot make the arbiter's directory")?;
        fs::write(layout.config_file(), layout.toml()).context("Cannot write the configuration")?;
        let relay = match wire {
            Wire::Straight => None,
            Wire::Relayed => Some(Relay::start(&layout.relay_routes()).context("Cannot start the relay")?),
        };
        let mut world = Self {
            layout,
            lockstep,
            output,
            relay,
            arbiter: None,
            network,
            _temporary: temporary,
        };
        if wish.arbiter == Arbiter::Quic {
            world.arbiter = Some(world.start_arbiter().await?);
        }
        Ok(world)
    }

    /// Starts one side, with more arguments of `lockstep run`.
    pub(crate) fn start(&self, node: &str, role: &str, more: &[&str]) -> anyhow::Result<Host> {
        let mut command = Command::new(&self.lockstep);
        command.arg("run").arg("--config").arg(self.layout.config_file());
        command.args(["--node", node, "--role", role, "--die-with-parent"]);
        command.args(more);
        Host::start(node, command, self.layout.control_socket(node), &self.output)
    }

    /// Starts a node by itself, from its image of the disk and nothing else: as if there had never been another one.
    pub(crate) fn start_apart(&self, node: &str) -> anyhow::Result<Host> {
        let config = self.layout.config_file_apart(node);
        fs::write(&config, self.layout.toml_apart(node)).context("Cannot write the configuration")?;
        fs::create_dir_all(self.layout.dir.join(format!("arbiter-{node}")))
            .context("Cannot make an arbiter's directory")?;
        let mut command = Command::new(&self.lockstep);
        command.arg("run").arg("--config").arg(config);
        command.args([
            "--node",
            node,
            "--role",
            "primary",
            "--alone",
            "--die-with-parent",
        ]);
        Host::start(node, command, self.layout.control_socket(node), &self.output)
    }

    /// Starts a spare in the place of a host that died.
    pub(crate) fn start_spare(&self, node: &str) -> anyhow::Result<Host> {
        let mut command = Command::new(&self.lockstep);
        command
            .arg("standby")
            .arg("--config")
            .arg(self.layout.config_file());
        command.args(["--node", node, "--die-with-parent"]);
        Host::start(node, command, self.layout.control_socket(node), &self.output)
    }

    /// Waits until the guest answers over the network, and with two hosts until it is protected.
    pub(crate) async fn wait_until_up(
        &mut self,
        primary: &mut Host,
        backup: Option<&mut Host>,
    ) -> anyhow::Result<()> {
        let mut hosts: Vec<&mut Host> = std::iter::once(primary).chain(backup).collect();
        let wanted = if hosts.len() == 2 { "primary" } else { "alone" };
        let deadline = Instant::now() + START_TIME;
        loop {
            let mut taps = Vec::new();
            for host in &mut hosts {
                if let Some(end) = host.ended()? {
                    bail!(
                        "Host {} ended ({end}) before the guest was up{}",
                        host.name(),
                        host.last_words()
                    );
                }
                taps.push(config::tap(host.name()));
            }
            let plugged = self.network.plug(&taps).await?;
            let ready = hosts[0]
                .status()
                .await
                .is_some_and(|status| status.is_ready(wanted));
            if plugged && ready && crate::client::answers(config::GUEST, PING_TIME).await {
                return Ok(());
            }
            if Instant::now() > deadline {
                let words: Vec<_> = hosts.iter().map(|host| host.last_words()).collect();
                bail!(
                    "The guest was not up after {} s{}",
                    START_TIME.as_secs(),
                    words.concat()
                );
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// A mirrored disk: throws the image of a host that is dead away.
    pub(crate) fn lose_disk_of(&self, node: &str) -> anyhow::Result<()> {
        match self.layout.image_of(node) {
            Some(image) => fs::remove_file(image).context("Cannot remove a disk image"),
            None => Ok(()),
        }
    }

    /// Cuts the wire between the hosts, both ways.
    pub(crate) fn cut(&self) {
        if let Some(relay) = &self.relay {
            relay.cut();
        }
    }

    /// The wire, where it can be cut.
    pub(crate) fn relay(&self) -> Option<&Relay> {
        self.relay.as_ref()
    }

    /// The network that hosts and outside are in.
    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// Where everything of this world is.
    pub(crate) fn dir(&self) -> &Path {
        &self.layout.dir
    }

    /// Where a node answers.
    pub(crate) fn control_socket(&self, node: &str) -> PathBuf {
        self.layout.control_socket(node)
    }

    /// Kills the arbiter service; it is back after [`Self::restart_arbiter`].
    pub(crate) fn kill_arbiter(&mut self) {
        drop(self.arbiter.take());
    }

    /// Starts the arbiter service again, on what it left on its disk.
    pub(crate) async fn restart_arbiter(&mut self) -> anyhow::Result<()> {
        self.arbiter = Some(self.start_arbiter().await?);
        Ok(())
    }

    /// Makes the arbiter service unreachable; it does not answer and does not refuse.
    pub(crate) fn stop_arbiter(&mut self) -> anyhow::Result<()> {
        self.arbiter
            .as_mut()
            .context("Only an arbiter service can be stopped: use --arbiter quic")?
            .stop();
        Ok(())
    }

    /// Brings it back.
    pub(crate) fn resume_arbiter(&mut self) {
        if let Some(arbiter) = &mut self.arbiter {
            arbiter.resume();
        }
    }

    async fn start_arbiter(&self) -> anyhow::Result<Host> {
        let mut command = Command::new(self.lockstep.with_file_name("lockstep-arbiter"));
        let config = self.layout.arbiter_config_file();
        fs::write(&config, self.layout.arbiter_toml()).context("Cannot write the arbiter's configuration")?;
        command.arg("serve").arg("--config").arg(config);
        let mut host = Host::start("arbiter", command, PathBuf::new(), &self.output)?;
        // It is asked with retries, so it is enough that it did not fail at once.
        tokio::time::sleep(POLL_INTERVAL).await;
        match host.ended()? {
            None => Ok(host),
            Some(end) => bail!("The arbiter ended ({end}){}", host.last_words()),
        }
    }
}

fn directory(keep: Option<&Path>) -> anyhow::Result<(PathBuf, Option<tempfile::TempDir>)> {
    let Some(keep) = keep else {
        let temporary = tempfile::Builder::new().prefix("lockstep-").tempdir();
        let temporary = temporary.context("Cannot make a temporary directory")?;
        return Ok((temporary.path().to_owned(), Some(temporary)));
    };
    fs::create_dir_all(keep).with_context(|| format!("Cannot make {}", keep.display()))?;
    let mut entries = fs::read_dir(keep).with_context(|| format!("Cannot read {}", keep.display()))?;
    if entries.next().is_some() {
        bail!(
            "{} is not empty; name another directory with --keep",
            keep.display()
        );
    }
    Ok((
        keep.canonicalize()
            .with_context(|| format!("Cannot find {}", keep.display()))?,
        None,
    ))
}

fn make_keys(lockstep: &Path, layout: &Layout) -> anyhow::Result<()> {
    let made = Command::new(lockstep)
        .args(["keys", "--dir"])
        .arg(layout.keys_dir())
        .args(config::NODES)
        .arg(config::ARBITER_NAME)
        .output()
        .context("Cannot start lockstep keys")?;
    if !made.status.success() {
        bail!(
            "Cannot make keys: {}",
            String::from_utf8_lossy(&made.stderr).trim()
        );
    }
    Ok(())
}

fn make_disk(path: &Path) -> anyhow::Result<()> {
    let disk = File::create_new(path).context("Cannot make the guest's disk")?;
    disk.set_len(config::DISK_BYTES)
        .context("Cannot give the guest's disk its size")
}

/// How long the guest may take for one PING.
const PING_TIME: Duration = Duration::from_millis(500);
/// How long hosts may take to bring the guest up.
const START_TIME: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
