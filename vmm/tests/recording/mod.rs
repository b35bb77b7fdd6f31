//! One recorded run of the micro guest, made once for all tests of this program, and the way to replay it.

mod client;
mod host;
mod log;

use bytes::Bytes;
use lockstep_protocol::ids::{DeviceId, Position};
use lockstep_protocol::record::Record;
use lockstep_vmm::ft::clock::HostClock;
use lockstep_vmm::ft::port::DevicePort;
use lockstep_vmm::ft::record::Recorder;
use lockstep_vmm::ft::replay::{Replayed, Replayer};
use lockstep_vmm::ft::wait::Waker;
use lockstep_vmm::machine::{Advance, End, Exit, Guest, Machine, MachineDigest, MachineSpec};
use lockstep_vmm::run::MICRO_GUEST;
use lockstep_vmm::stop::Stop;
use lockstep_vmm::vcpu::Watchdog;
use lockstep_vmm::virtio::mmio::{DeviceKind, MmioDevice};
use log::{Given, MemoryLog};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

pub(crate) use client::MARKED;

const SEED: [u8; 32] = *b"the same seed makes the same run";
pub(crate) const MEMORY_MIB: u64 = 64;
const STALL_LIMIT: Duration = Duration::from_millis(2);
const CMDLINE: &str = "ip=10.77.0.2/24 gw=10.77.0.1 port=6379";

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) end: End,
    pub(crate) position: Position,
    pub(crate) console: Vec<u8>,
    pub(crate) digest: MachineDigest,
}

/// A run and its log.
pub(crate) struct Recording {
    /// The log as it would go over the wire.
    pub(crate) log: Bytes,
    pub(crate) outcome: Outcome,
    /// How many commands the clients saw answered.
    pub(crate) operations: usize,
    /// How often the guest was stopped in the middle of a run.
    pub(crate) deltas: u64,
    /// What the guest saw of its devices: kind, features, configuration space.
    devices: Vec<(DeviceKind, u64, Vec<u8>)>,
}

/// Tells `story` with the recording; `name` is the test's own.
pub(crate) fn with(name: &str, story: impl FnOnce(&Recording)) {
    static RECORDING: OnceLock<Recording> = OnceLock::new();
    host::in_own_network(name, || {
        // On a thread of its own: a network namespace is a thread's, and the test's own thread keeps the old one.
        let recording =
            RECORDING.get_or_init(|| thread::spawn(record).join().expect("the run can be recorded"));
        story(recording);
    });
}

impl Recording {
    /// The log, decoded.
    pub(crate) fn records(&self) -> Vec<Record> {
        log::decode(self.log.clone())
            .expect("what was encoded can be decoded")
            .into()
    }

    /// The records for the windows behind `position`.
    pub(crate) fn records_after(&self, position: Position) -> Vec<Record> {
        let records = self.records().into_iter();
        records.filter(|record| record.position > position).collect()
    }

    /// What the recorded machine was made from, with `memory_mib` MiB.
    pub(crate) fn spec(&self, memory_mib: u64) -> MachineSpec {
        MachineSpec {
            vcpus: lockstep_vmm::vcpu::VcpuCount::ONE,
            memory_mib,
            guest: Guest::Micro(MICRO_GUEST),
            cmdline: CMDLINE.into(),
            devices: self.windows(),
        }
    }

    fn windows(&self) -> Vec<MmioDevice> {
        let devices = (0_u8..).zip(&self.devices);
        devices
            .map(|(id, (kind, features, config))| {
                MmioDevice::new(DeviceId::new(id), *kind, *features, config.clone())
            })
            .collect()
    }
}

/// Runs the guest for real clients and keeps every record.
fn record() -> Recording {
    let host = host::Host::start();
    let ports = host.connect();
    ports.iter().for_each(DevicePort::go_live_alone);
    let devices = ports
        .iter()
        .map(|port| (port.kind(), port.facts().1, port.facts().0.to_vec()))
        .collect();
    let mut machine = build(ports.iter().map(DevicePort::window).collect());
    let log = MemoryLog::default();
    let waker = Waker::new().expect("there are event files");
    let clock = HostClock::from_zero();
    let mut recorder = Recorder::new(Box::new(log.clone()), ports, clock, waker.clone());
    let stop = Stop::default();
    let clients = {
        let (stop, waker) = (stop.clone(), waker);
        thread::spawn(move || client::ask_everything(&host::StopOnPanic { stop, waker }))
    };

    recorder
        .power_on(&mut machine, SEED)
        .expect("the log takes everything");
    let mut console = Vec::new();
    let watchdog = Watchdog::start(Arc::clone(machine.pulse()), STALL_LIMIT).expect("there are threads");
    let end = loop {
        let end = match machine.advance().expect("KVM runs the guest") {
            Advance::Exit(mut exit) => {
                let end = exit.end;
                let served = recorder.window(&mut machine, &mut exit, &stop);
                served.expect("the log takes everything");
                end
            }
            Advance::Stalled => {
                let served = recorder.stalled(&mut machine);
                served.expect("the log takes everything");
                None
            }
        };
        console.extend(machine.take_console());
        if end.is_some() || stop.is_asked() {
            break end;
        }
    };
    drop(watchdog);
    let deltas = recorder.deltas().deltas;
    let operations = clients.join().expect("the guest answers as it should");
    let end = end.expect("the guest switched itself off");
    let digest = machine.digest().expect("KVM tells the registers");
    let outcome = Outcome {
        end,
        position: machine.position(),
        console,
        digest,
    };
    Recording {
        log: log.bytes(),
        outcome,
        operations,
        deltas,
        devices,
    }
}

fn build(devices: Vec<MmioDevice>) -> Machine {
    let spec = MachineSpec {
        vcpus: lockstep_vmm::vcpu::VcpuCount::ONE,
        memory_mib: MEMORY_MIB,
        guest: Guest::Micro(MICRO_GUEST),
        cmdline: CMDLINE.into(),
        devices,
    };
    Machine::build(spec).expect("these tests need a usable /dev/kvm: `lockstep check` names the remedy")
}

/// Runs a second machine that has nothing but `records`.
pub(crate) fn replay(recording: &Recording, records: Vec<Record>) -> Result<Outcome, String> {
    Replica::new(recording, records).run_to_end()
}

/// A machine that is fed from a log. Between calls it stands in a window that was served.
pub(crate) struct Replica {
    pub(crate) machine: Machine,
    replayer: Replayer,
    end: Option<End>,
    console: Vec<u8>,
}

impl Replica {
    /// A machine that stands at position 0, its window served.
    fn new(recording: &Recording, records: Vec<Record>) -> Self {
        let machine = build(recording.windows());
        let mut replica = Self::fed(machine, records);
        replica.serve(&mut Exit::default()).expect("power-on fits");
        replica
    }

    /// A machine that is a copy of this one and goes on with the next records.
    pub(crate) fn going_on(&self, machine: Machine, records: Vec<Record>) -> Self {
        let mut copy = Self::fed(machine, records);
        copy.replayer = copy.replayer.holding_as(&self.replayer);
        copy
    }

    fn fed(machine: Machine, records: Vec<Record>) -> Self {
        Self {
            machine,
            replayer: Replayer::new(Box::new(Given(records.into())), Vec::new(), MEMORY_MIB << 20),
            end: None,
            console: Vec::new(),
        }
    }

    /// The recorded run up to the first window at or after `position` of which `holds` is true.
    pub(crate) fn at(recording: &Recording, position: Position, holds: impl Fn(&Machine) -> bool) -> Self {
        let mut replica = Self::new(recording, recording.records());
        replica.run_until(|machine| machine.position() >= position && holds(machine));
        replica
    }

    /// Runs on to the first window of which `holds` is true.
    pub(crate) fn run_until(&mut self, holds: impl Fn(&Machine) -> bool) {
        while !holds(&self.machine) {
            self.step().expect("the log fits its own machine");
            assert_eq!(self.end, None, "the guest ended before that");
        }
    }

    /// Runs to the next window and serves it.
    pub(crate) fn step(&mut self) -> Result<(), String> {
        let mut exit = self.machine.step().expect("KVM runs the guest");
        self.serve(&mut exit)
    }

    /// Runs on to the end of the guest.
    pub(crate) fn run_to_end(mut self) -> Result<Outcome, String> {
        loop {
            if let Some(end) = self.end {
                let digest = self.machine.digest().expect("KVM tells the registers");
                return Ok(Outcome {
                    end,
                    position: self.machine.position(),
                    console: self.console,
                    digest,
                });
            }
            self.step()?;
        }
    }

    fn serve(&mut self, exit: &mut Exit) -> Result<(), String> {
        let end = exit.end;
        let replayed = self
            .replayer
            .window(&mut self.machine, exit)
            .map_err(|diverged| diverged.to_string())?;
        self.console.extend(self.machine.take_console());
        self.end = end;
        match replayed {
            Replayed::LogEnds => Err("The log ended before the guest did".into()),
            Replayed::Closed => Ok(()),
        }
    }
}
