//! `lockstep run`: one side of a protected VM, from its configuration to its end.
//!
//! [`run`] builds what both roles need, then hands over to the run loop of the role: `live` for whoever talks to the
//! outside, `shadow` for a backup, which becomes live when its primary is lost, `standby` for a spare, which becomes a
//! backup. Each role owns its parts; changing it
//! consumes the old one.

mod image;
mod live;
mod reprotect;
mod shadow;
mod snapshot;
mod standby;
mod start;

use crate::config::{Config, DiskMode, Guest, Node};
use crate::console::{Console, Typed};
use crate::control;
use crate::errand::Errands;
use crate::ft::clock::HostClock;
use crate::ft::flip::Flip;
use crate::ft::pair;
use crate::ft::port::DevicePort;
use crate::ft::takeover::Seat;
use crate::ft::wait::Waker;
use crate::ft::watch;
use crate::hardware::{Hardware, NO_STOCK_KERNELS, NO_STOCK_KERNELS_REMEDY};
use crate::machine::{self, End, Machine, MachineSpec};
use crate::monitor::{DeviceProbe, Monitor};
use crate::spawn::{self, DeviceProcess};
use crate::state;
use crate::status::{Role, What};
use crate::stop::Stop;
use crate::virtio::mmio::DeviceKind;
use anyhow::{Context, bail};
use lockstep_arbiter::register::VmName;
use lockstep_protocol::ids::{DeviceId, Holder, Incarnation, LogOffset, Position, Term};
use lockstep_staging::gate::Mode;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The micro guest's image.
pub const MICRO_GUEST: &[u8] = include_bytes!(env!("LOCKSTEP_MICRO_GUEST"));

/// What to run.
#[derive(Debug)]
pub struct RunOptions {
    /// The checked configuration.
    pub config: Config,
    /// Which node of it this host is; it exists.
    pub node: String,
    /// What this node is at the start.
    pub role: StartRole,
    /// Run unprotected: claim the term and hold it alone.
    pub alone: bool,
    /// A snapshot to start from instead of powering on; only for a host that is alone.
    pub from: Option<PathBuf>,
    /// Die with the process that started this one.
    pub die_with_parent: bool,
    /// For tests: die like a host that loses power when this record was appended.
    pub die_at_record: Option<LogOffset>,
    /// For tests: a bit of a backup's machine flips.
    pub flip_bit: Option<Flip>,
}

/// What a node is at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartRole {
    /// Talks to the world.
    Primary,
    /// Executes what the primary executed.
    Backup,
    /// Waits for a VM that runs unprotected, takes it in, and is its backup then.
    Spare,
}

/// How a run ends, other than by an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The guest ended itself.
    Guest(End),
    /// Somebody asked this process to stop.
    Stopped,
    /// This host has lost a device process, and the other one goes on.
    DeviceLost(DeviceKind),
}

/// Why a host leaves its pair although it could execute the guest.
#[derive(Debug, thiserror::Error)]
#[error(
    "The process of this host's {0} is gone, so the other host goes on without this one; its own message says why; make \
     this host a backup again with `lockstep standby`"
)]
struct DeviceLost(DeviceKind);

/// What every role needs.
struct Host {
    config: Config,
    node: Node,
    peer: Node,
    monitor: Arc<Monitor>,
    waker: Waker,
    stop: Stop,
    errands: Errands,
    seat: Seat,
    machine: Machine,
    console: Console,
    typed: Typed,
    /// What the guest boots, in few bytes: both hosts must boot the same.
    image: blake3::Hash,
    /// The same in full.
    guest: machine::Guest,
    die_at_record: Option<LogOffset>,
    flip_bit: Option<Flip>,
    /// Kept for their ends: a device process of ours dies with this value.
    _processes: Vec<DeviceProcess>,
}

/// Runs the VM until it ends.
///
/// # Errors
/// When this host cannot run it, loses a claim, or diverges.
pub fn run(options: &RunOptions) -> anyhow::Result<ExitCode> {
    if options.die_with_parent {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .context("Cannot ask the kernel to end this process with its parent")?;
    }
    if matches!(options.config.vm.guest, Guest::Linux { .. }) && Hardware::of_host() == Hardware::Software {
        bail!("{NO_STOCK_KERNELS}. {NO_STOCK_KERNELS_REMEDY}");
    }
    let (mut host, ports) = prepare(options)?;
    let ended = match (options.role, options.alone) {
        (StartRole::Primary, true) => live::start_alone(&mut host, ports),
        (StartRole::Primary, false) => live::start_protected(&mut host, ports),
        (StartRole::Backup, _) => shadow::start(&mut host, ports),
        (StartRole::Spare, _) => standby::start(&mut host, ports),
    };
    // Last of all: whoever waits for a snapshot hears what came of it.
    host.errands.close();
    match ended? {
        Ended::Stopped | Ended::Guest(End::PowerOff) => Ok(ExitCode::SUCCESS),
        Ended::Guest(End::Halt) => {
            anyhow::bail!("The guest halted with interrupts off; nothing will ever wake it")
        }
        Ended::Guest(End::Panic) => anyhow::bail!("The guest panicked; its console says why"),
        Ended::DeviceLost(kind) => Err(DeviceLost(kind).into()),
        Ended::Guest(End::Fault { rip }) => anyhow::bail!("The guest faulted at {rip:#x} and cannot go on"),
    }
}

fn prepare(options: &RunOptions) -> anyhow::Result<(Host, Vec<DevicePort>)> {
    let config = options.config.clone();
    let image = image::Image::load(&config.vm.guest)?;
    let node = config.node(&options.node)?.clone();
    check_role(options, &node)?;
    let peer = config.peer_of(&options.node)?.clone();
    let others = config.others_of(&options.node).map(shown).collect();
    let monitor = Monitor::new(&config.vm.name, node.name.as_str(), shown(&peer), others);
    let waker = Waker::new().context("Cannot make an event file; raise the limit on open files")?;
    let stop = start::stop_on_signals(&waker)?;
    let asked = (stop.clone(), waker.clone());
    let errands = Errands::new(waker.clone());
    control::serve(&node.run_dir, Arc::clone(&monitor), errands.clone(), move || {
        asked.0.ask();
        asked.1.wake();
    })?;
    let seat = Seat {
        arbiter: start::open_arbiter(&config, &node)?,
        vm: VmName::new(&config.vm.name)?,
        me: Holder {
            node: node.name.clone(),
            incarnation: Incarnation::new(rand::random()),
        },
    };
    let mut processes = spawn::device_processes(&config, &node)?;
    let compares_images = !options.alone && options.role != StartRole::Spare;
    let ports = connect_ports(&mut processes, &config, compares_images)?;
    monitor.set_devices(
        processes
            .iter()
            .zip(&ports)
            .map(|(process, port)| probe(process, port))
            .collect(),
    );
    watch::watch(&ports, &waker).context("Cannot watch the device processes")?;
    let (console, typed) = Console::open(config.vm.console, &node, &waker)?;
    let spec = MachineSpec {
        vcpus: config.vm.vcpus,
        memory_mib: u64::from(config.vm.memory_mib),
        guest: image.guest(),
        cmdline: config.vm.cmdline.clone(),
        devices: ports.iter().map(DevicePort::window).collect(),
    };
    let machine = match &options.from {
        Some(path) => state::snapshot::load(path, spec)?,
        None => Machine::build(spec)?,
    };
    let die_at_record = options.die_at_record;
    let (guest, image) = (image.guest(), image.digest());
    let host = Host {
        config,
        node,
        peer,
        monitor,
        waker,
        stop,
        errands,
        seat,
        machine,
        console,
        typed,
        image,
        guest,
        die_at_record,
        flip_bit: options.flip_bit,
        _processes: processes,
    };
    Ok((host, ports))
}

impl Host {
    /// The clock of a guest that goes on now. At power-on Linux sees the wall time and the micro guest counts from zero;
    /// one that was frozen in a snapshot does not notice.
    fn clock(&self) -> HostClock {
        match self.config.vm.guest {
            _ if self.machine.position() > Position::ZERO => self.taken_over_clock(Duration::ZERO),
            Guest::Micro => HostClock::from_zero(),
            Guest::Linux { .. } => HostClock::of_wall(),
        }
    }

    /// The clock of a guest whose time stood where the machine's does, `ago` before now.
    fn taken_over_clock(&self, ago: Duration) -> HostClock {
        let clock = HostClock::resumed(self.machine.time(), ago);
        match self.config.vm.guest {
            Guest::Micro => clock,
            Guest::Linux { .. } => clock.steered_by_wall(),
        }
    }

    /// From now on `peer` is the other host.
    fn face(&mut self, peer: &Node) {
        self.monitor.set_peer(shown(peer));
        self.peer = peer.clone();
    }

    /// What the pair's observers pass news on to.
    fn context(&self, ports: &[DevicePort]) -> pair::Context {
        pair::Context {
            gates: ports.iter().map(DevicePort::gate).collect(),
            waker: self.waker.clone(),
            monitor: Arc::clone(&self.monitor),
            stop: self.stop.clone(),
            listening: None,
        }
    }

    /// The machine of a VM that comes from another host: what it boots is in its memory already.
    fn spec(&self, ports: &[DevicePort]) -> MachineSpec {
        MachineSpec {
            vcpus: self.config.vm.vcpus,
            memory_mib: u64::from(self.config.vm.memory_mib),
            guest: self.guest.clone(),
            cmdline: self.config.vm.cmdline.clone(),
            devices: ports.iter().map(DevicePort::window).collect(),
        }
    }

    /// Notes where the machine is, and shows what the guest printed.
    fn observe(&mut self) {
        self.monitor
            .at(self.machine.position(), self.machine.running_for());
        let printed = self.machine.take_console();
        if !printed.is_empty() {
            self.console.print(&printed);
        }
    }

    /// Another host lives: nothing leaves this one ever again. The error says so to whoever started it.
    fn halt(&self, ports: &[DevicePort], by: &Holder, term: Term) -> anyhow::Error {
        ports.iter().for_each(|port| port.gate().set_mode(Mode::Halted));
        self.monitor.note(What::Halted);
        self.monitor.set_role(Role::Halted, term);
        anyhow::anyhow!(
            "Node {} lives in term {term}, so this one halted; look at it with `lockstep status`",
            by.node
        )
    }
}

/// A spare is no one of the two that power the VM on, and a backup gets all that it has from its primary.
fn check_role(options: &RunOptions, node: &Node) -> anyhow::Result<()> {
    let is_primary = options.role == StartRole::Primary;
    if options.from.is_some() && !(is_primary && options.alone) {
        bail!(
            "Only a host that starts alone goes on from a snapshot: start this one with `--role primary --alone --from FILE`, \
             or take --from out and start a backup for it later, with `lockstep standby`"
        );
    }
    if options.alone && !is_primary {
        bail!(
            "A backup is never alone: take --alone out, or start this host with `--role primary --alone` if it is to run the \
             VM unprotected"
        );
    }
    if node.is_spare && options.role != StartRole::Spare && !options.alone {
        bail!(
            "Node {} is a spare in {}: start it with `lockstep standby`, or take `spare = true` out there and give it to another",
            node.name,
            options.config.path.display()
        );
    }
    Ok(())
}

/// A node as the status shows it: name and address.
fn shown(node: &Node) -> (String, String) {
    (node.name.to_string(), node.address.to_string())
}

/// Reaches every device process. With `compares_images` it has to say what its own disk image holds.
fn connect_ports(
    processes: &mut [DeviceProcess],
    config: &Config,
    compares_images: bool,
) -> anyhow::Result<Vec<DevicePort>> {
    let is_mirrored = config.vm.disk.is_some_and(|disk| disk.mode == DiskMode::Mirror);
    (0_u8..)
        .zip(processes)
        .map(|(id, process)| {
            let port = connect_port(DeviceId::new(id), process, compares_images && is_mirrored)?;
            if process.kind == DeviceKind::Blk && port.is_mirrored() != is_mirrored {
                bail!(
                    "The disk process at {} and the configuration do not agree on how the hosts have the disk; start it \
                     with the --mode that `vm.disk.mode` says",
                    process.sockets.staging.display()
                );
            }
            Ok(port)
        })
        .collect()
}

/// How long a device process may take to come up.
const DEVICES_START: Duration = Duration::from_secs(5);
/// How long to sleep between two looks whether it has.
const DEVICE_LOOK: Duration = Duration::from_millis(2);

/// Reaches a device process that may still be starting. One that ended instead is not waited for.
fn connect_port(
    id: DeviceId,
    process: &mut DeviceProcess,
    compares_images: bool,
) -> anyhow::Result<DevicePort> {
    let deadline = Instant::now() + DEVICES_START;
    while !process.sockets.staging.exists() && Instant::now() < deadline {
        if process.has_ended() {
            bail!(
                "The device process for the {} ended at once; its own message says why",
                process.kind
            );
        }
        std::thread::sleep(DEVICE_LOOK);
    }
    let sockets = &process.sockets;
    Ok(DevicePort::connect_and_ask(
        id,
        process.kind,
        &sockets.vhost,
        &sockets.staging,
        compares_images,
    )?)
}

fn probe(process: &DeviceProcess, port: &DevicePort) -> DeviceProbe {
    let kind = match process.kind {
        DeviceKind::Net => "net",
        DeviceKind::Blk => "blk",
    };
    DeviceProbe {
        kind,
        gate: port.gate(),
        alive: port.liveness(),
        pid: process.pid(),
    }
}
