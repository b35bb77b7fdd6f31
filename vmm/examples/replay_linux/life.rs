//! One life of the guest, from power-on to power-off: recorded with its devices, or replayed from the log alone.

use crate::log::{Given, MemoryLog};
use anyhow::bail;
use lockstep_protocol::record::Record;
use lockstep_vmm::ft::clock::HostClock;
use lockstep_vmm::ft::port::DevicePort;
use lockstep_vmm::ft::record::Recorder;
use lockstep_vmm::ft::replay::{Replayed, Replayer};
use lockstep_vmm::ft::wait::Waker;
use lockstep_vmm::machine::{End, Exit, Machine, MachineDigest};
use lockstep_vmm::stop::Stop;
use std::collections::VecDeque;
use std::io::Write;
use std::time::{Duration, Instant};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// A life that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(300);
const SEED: [u8; 32] = [7; 32];

/// What a life leaves behind.
pub(crate) struct Life {
    /// The registers at every exit, in few bytes.
    pub(crate) exits: Vec<u64>,
    pub(crate) end: End,
    pub(crate) digest: MachineDigest,
    pub(crate) seconds: f64,
    /// How much it printed.
    pub(crate) console: usize,
    /// How many `rdtsc` of user space were answered.
    pub(crate) user_rdtsc: u64,
}

/// Lives it with devices, and keeps the log.
pub(crate) fn record(mut machine: Machine, ports: Vec<DevicePort>, log: &MemoryLog) -> anyhow::Result<Life> {
    let start = Instant::now();
    let clock = HostClock::of_wall();
    let mut recorder = Recorder::new(Box::new(log.clone()), ports, clock, Waker::new()?);
    recorder.power_on(&mut machine, SEED)?;
    let (mut exits, mut console) = (Vec::new(), 0);
    let stop = Stop::default();
    loop {
        let mut exit = machine.step()?;
        let end = exit.end;
        exits.push(machine.register_digest()?);
        recorder.window(&mut machine, &mut exit, &stop)?;
        let printed = machine.take_console();
        std::io::stderr().write_all(&printed)?;
        console += printed.len();
        if let Some(end) = end {
            return leave(machine, exits, end, console, start);
        }
        if start.elapsed() > PATIENCE {
            bail!(
                "The guest did not switch itself off within {} s",
                PATIENCE.as_secs()
            );
        }
    }
}

/// Lives it again, from the log alone.
pub(crate) fn replay(mut machine: Machine, log: VecDeque<Record>) -> anyhow::Result<Life> {
    let start = Instant::now();
    let memory_bytes = machine.memory().iter().map(GuestMemoryRegion::len).sum();
    let mut replayer = Replayer::new(Box::new(Given(log)), Vec::new(), memory_bytes);
    let (mut exits, mut console) = (Vec::new(), 0);
    let mut exit = Exit::default();
    loop {
        let end = exit.end;
        let window = replayer.window(&mut machine, &mut exit)?;
        console += machine.take_console().len();
        if let Some(end) = end {
            return leave(machine, exits, end, console, start);
        }
        if window == Replayed::LogEnds {
            bail!("The log ended before the guest did, at {} exits", exits.len());
        }
        exit = machine.step()?;
        exits.push(machine.register_digest()?);
    }
}

fn leave(
    mut machine: Machine,
    exits: Vec<u64>,
    end: End,
    console: usize,
    start: Instant,
) -> anyhow::Result<Life> {
    Ok(Life {
        exits,
        end,
        digest: machine.digest()?,
        seconds: start.elapsed().as_secs_f64(),
        console,
        user_rdtsc: machine.user_rdtsc(),
    })
}
