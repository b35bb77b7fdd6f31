//! Records a run of stock Linux until it switches itself off, replays the log in a second machine, and compares: every
//! exit's registers, and all of memory at the end.
//!
//! For a host whose KVM runs stock kernels. Device processes are started from the folder of this program or of its
//! parent; the second machine has none, only the log. The last line on standard output is a JSON object.
#![allow(clippy::unwrap_used, reason = "an example that fails says where")]

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use clap::Parser;
use lockstep_protocol::codec::{RecordDecoder, RecordEncoder};
use lockstep_protocol::ids::{DeviceId, GuestTime, LogOffset, Position};
use lockstep_protocol::record::{Input, Record};
use lockstep_vmm::board::clock::HostClock;
use lockstep_vmm::ft::port::DevicePort;
use lockstep_vmm::ft::record::{LogSink, PeerLost, Recorder};
use lockstep_vmm::ft::replay::{LogSource, Replayed, Replayer};
use lockstep_vmm::ft::wait::Waker;
use lockstep_vmm::machine::{End, Exit, Guest, Machine, MachineDigest, MachineSpec};
use lockstep_vmm::monitor::unix_ns;
use lockstep_vmm::stop::Stop;
use lockstep_vmm::virtio::mmio::{DeviceKind, MmioDevice};
use std::collections::VecDeque;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A boot that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(180);

/// Record a run of stock Linux, replay it, compare
#[derive(Debug, Parser)]
struct Args {
    /// A vmlinux or bzImage
    #[arg(long)]
    kernel: PathBuf,
    /// Its initial file system
    #[arg(long)]
    initrd: PathBuf,
    /// A disk, for the recorded machine alone
    #[arg(long)]
    disk: Option<PathBuf>,
    /// A tap, for the recorded machine alone
    #[arg(long)]
    tap: Option<String>,
    #[arg(long, default_value_t = 192)]
    memory_mib: u64,
    #[arg(long, default_value = "console=ttyS0 quiet panic=-1")]
    cmdline: String,
    /// Print nothing but the JSON object on standard output, which is so anyway
    #[arg(long)]
    json: bool,
}

/// A device process, for as long as this value lives.
struct Device {
    process: Child,
    kind: DeviceKind,
    sockets: [PathBuf; 2],
}

impl Device {
    fn start(kind: DeviceKind, arguments: &[&str], folder: &Path) -> anyhow::Result<Self> {
        let name = if kind == DeviceKind::Net { "net" } else { "blk" };
        let sockets = ["vhost", "staging"].map(|end| folder.join(format!("{name}-{end}.sock")));
        let own = std::env::current_exe()?;
        let program = own
            .ancestors()
            .map(|folder| folder.join(format!("vhost-{name}-ft")))
            .find(|program| program.is_file())
            .with_context(|| format!("There is no vhost-{name}-ft near {}", own.display()))?;
        let process = Command::new(program)
            .arg("--socket")
            .arg(&sockets[0])
            .arg("--staging")
            .arg(&sockets[1])
            .args(arguments)
            .spawn()?;
        Ok(Self {
            process,
            kind,
            sockets,
        })
    }

    fn connect(&self, id: DeviceId) -> anyhow::Result<DevicePort> {
        let port = DevicePort::connect(id, self.kind, &self.sockets[0], &self.sockets[1])?;
        port.go_live_alone();
        Ok(port)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The log in the bytes that would go over the wire.
#[derive(Default)]
struct Encoded {
    encoder: RecordEncoder,
    bytes: BytesMut,
    end: LogOffset,
}

type Log = Arc<Mutex<Encoded>>;

struct Sink(Log);

impl LogSink for Sink {
    fn append(&mut self, position: Position, inputs: &[Input<&[u8]>]) -> Result<LogOffset, PeerLost> {
        let log = &mut *self.0.lock().unwrap();
        let start = log.end;
        for (nth, input) in (1..).zip(inputs) {
            let record = Record {
                position,
                closes: nth == inputs.len(),
                input: input.borrowed(),
            };
            log.encoder.encode(&mut log.bytes, &record);
            log.end = log.end.next();
        }
        Ok(start)
    }

    fn is_lost(&self) -> bool {
        false
    }

    fn end(&self) -> LogOffset {
        self.0.lock().unwrap().end
    }
}

struct Source(VecDeque<Record<Bytes>>);

impl LogSource for Source {
    fn next(&mut self) -> Option<Record<Bytes>> {
        self.0.pop_front()
    }

    fn executed(&mut self, _: Position) {}
}

/// What a run leaves behind.
struct Run {
    exits: Vec<u64>,
    end: End,
    digest: MachineDigest,
    seconds: f64,
    console: usize,
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let args = Args::parse();
    let (kernel, initrd) = (std::fs::read(&args.kernel)?, std::fs::read(&args.initrd)?);
    let folder = std::env::temp_dir().join(format!("replay-linux-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let mut devices = Vec::new();
    if let Some(tap) = &args.tap {
        devices.push(Device::start(
            DeviceKind::Net,
            &["--tap", tap, "--mac", "52:54:00:4c:53:01"],
            &folder,
        )?);
    }
    if let Some(disk) = &args.disk {
        let disk = disk.to_string_lossy();
        devices.push(Device::start(
            DeviceKind::Blk,
            &["--disk", &disk, "--mode", "shared"],
            &folder,
        )?);
    }
    let ports: Vec<_> = (0_u8..)
        .zip(&devices)
        .map(|(id, device)| device.connect(DeviceId::new(id)))
        .collect::<Result<_, _>>()?;
    let facts: Vec<_> = ports
        .iter()
        .map(|port| (port.id(), port.kind(), port.facts().1, port.facts().0.to_vec()))
        .collect();
    let build = || {
        let windows = facts
            .iter()
            .map(|(id, kind, features, config)| MmioDevice::new(*id, *kind, *features, config.clone()));
        Machine::build(MachineSpec {
            memory_mib: args.memory_mib,
            guest: Guest::Linux {
                kernel: &kernel,
                initrd: &initrd,
            },
            cmdline: args.cmdline.clone(),
            devices: windows.collect(),
        })
        .context("Cannot build the machine")
    };
    let log = Log::default();
    let recorded = record(build()?, ports, &log)?;
    let bytes = log.lock().unwrap().bytes.clone().freeze();
    let log_bytes = bytes.len();
    let log = decode(bytes)?;
    let records = log.len();
    eprintln!(
        "recorded: {} exits, {records} records, {:.2} s, {:?}",
        recorded.exits.len(),
        recorded.seconds,
        recorded.end
    );
    let replayed = replay(build()?, log)?;
    let differing = |one: &[u64], other: &[u64]| {
        one.len().abs_diff(other.len()) + one.iter().zip(other).filter(|(one, other)| one != other).count()
    };
    let report = serde_json::json!({
        "exits": recorded.exits.len(),
        "replayed_exits": replayed.exits.len(),
        "diverged_exits": differing(&recorded.exits, &replayed.exits),
        "pages": recorded.digest.pages.len(),
        "differing_pages": differing(&recorded.digest.pages, &replayed.digest.pages),
        "registers_equal": recorded.digest.registers == replayed.digest.registers,
        "records": records,
        "log_bytes": log_bytes,
        "record_s": recorded.seconds,
        "replay_s": replayed.seconds,
        "console_bytes": [recorded.console, replayed.console],
        "end": format!("{:?}", replayed.end),
    });
    println!("{report}");
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

fn record(mut machine: Machine, ports: Vec<DevicePort>, log: &Log) -> anyhow::Result<Run> {
    let start = Instant::now();
    let clock = HostClock::starting_at(GuestTime::new(unix_ns()));
    let mut recorder = Recorder::new(Box::new(Sink(Arc::clone(log))), ports, clock, Waker::new()?);
    recorder.power_on(&mut machine, [7; 32])?;
    let (mut exits, mut console) = (Vec::new(), 0);
    let stop = Stop::default();
    loop {
        let mut exit = machine.step()?;
        let end = exit.end;
        exits.push(machine.register_digest()?);
        recorder.window(&mut machine, &mut exit, &stop)?;
        console += show(&mut machine);
        if end.is_some() || start.elapsed() > PATIENCE {
            let end = end.unwrap_or(End::Panic);
            let seconds = start.elapsed().as_secs_f64();
            return Ok(Run {
                exits,
                end,
                digest: machine.digest()?,
                seconds,
                console,
            });
        }
    }
}

fn replay(mut machine: Machine, log: VecDeque<Record<Bytes>>) -> anyhow::Result<Run> {
    let start = Instant::now();
    let mut replayer = Replayer::new(Box::new(Source(log)), Vec::new());
    let (mut exits, mut console) = (Vec::new(), 0);
    let mut exit = Exit::default();
    loop {
        let end = exit.end;
        let window = replayer.window(&mut machine, &mut exit)?;
        console += machine.take_console().len();
        if end.is_some() || window == Replayed::LogEnds {
            let end = end.unwrap_or(End::Panic);
            let seconds = start.elapsed().as_secs_f64();
            return Ok(Run {
                exits,
                end,
                digest: machine.digest()?,
                seconds,
                console,
            });
        }
        exit = machine.step()?;
        exits.push(machine.register_digest()?);
    }
}

fn decode(mut bytes: Bytes) -> anyhow::Result<VecDeque<Record<Bytes>>> {
    let mut decoder = RecordDecoder::new();
    let mut records = VecDeque::new();
    while let Some(record) = decoder.decode(&mut bytes)? {
        records.push_back(record);
    }
    Ok(records)
}

fn show(machine: &mut Machine) -> usize {
    let printed = machine.take_console();
    std::io::stderr().write_all(&printed).unwrap();
    printed.len()
}
