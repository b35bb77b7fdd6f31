//! Records a run of stock Linux until it switches itself off, replays the log in a second machine, and compares: every
//! exit's registers, and all of memory at the end.
//!
//! For a host whose KVM runs stock kernels; the lab calls it (`cargo xtask lab replay`). Device processes are started from
//! the folder of this program or of one above; the second machine has none, only the log. The last line on standard
//! output is a JSON object.

mod device;
mod life;
#[path = "../../tests/recording/log.rs"]
mod log;

use anyhow::Context;
use clap::Parser;
use device::Device;
use life::Life;
use lockstep_vmm::ft::port::DevicePort;
use lockstep_vmm::machine::{Guest, Machine, MachineSpec};
use lockstep_vmm::virtio::mmio::MmioDevice;
use log::MemoryLog;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let args = Args::parse();
    let folder = tempfile::tempdir().context("Cannot make a folder")?;
    let devices = device::start(args.tap.as_deref(), args.disk.as_deref(), folder.path())?;
    let ports = devices
        .iter()
        .map(Device::connect)
        .collect::<Result<Vec<_>, _>>()?;
    let [first, second] = [(); 2].map(|()| ports.iter().map(DevicePort::window).collect());
    let parts = Parts {
        kernel: read(&args.kernel)?.into(),
        initrd: read(&args.initrd)?.into(),
        args,
    };

    let log = MemoryLog::default();
    let recorded = life::record(parts.build(first)?, ports, &log)?;
    let bytes = log.bytes();
    let log_bytes = bytes.len();
    let records = log::decode(bytes)?;
    eprintln!(
        "Recorded: {} exits, {} records, {:.2} s, {:?}",
        recorded.exits.len(),
        records.len(),
        recorded.seconds,
        recorded.end
    );
    let count = records.len();
    let replayed = life::replay(parts.build(second)?, records)?;
    println!("{}", report(&recorded, &replayed, count, log_bytes));
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("Cannot read {}", path.display()))
}

/// What both machines are made from.
struct Parts {
    kernel: Arc<[u8]>,
    initrd: Arc<[u8]>,
    args: Args,
}

impl Parts {
    fn build(&self, devices: Vec<MmioDevice>) -> anyhow::Result<Machine> {
        Machine::build(MachineSpec {
            vcpus: lockstep_vmm::vcpu::VcpuCount::ONE,
            memory_mib: self.args.memory_mib,
            guest: Guest::Linux {
                kernel: Arc::clone(&self.kernel),
                initrd: Arc::clone(&self.initrd),
            },
            cmdline: self.args.cmdline.clone(),
            devices,
        })
        .context("Cannot build the machine")
    }
}

/// Keys are never renamed: the lab reads them.
fn report(recorded: &Life, replayed: &Life, records: usize, log_bytes: usize) -> Value {
    let (pages, replayed_pages) = (&recorded.digest.pages, &replayed.digest.pages);
    let pages_differ = differing(pages, replayed_pages);
    serde_json::json!({
        "exits": recorded.exits.len(),
        "replayed_exits": replayed.exits.len(),
        "diverged_exits": differing(&recorded.exits, &replayed.exits).len(),
        "pages": pages.len(),
        "differing_pages": pages_differ.len(),
        "which_pages": pages_differ.iter().take(PAGES_TOLD).collect::<Vec<_>>(),
        "registers_equal": recorded.digest.registers == replayed.digest.registers,
        "records": records,
        "log_bytes": log_bytes,
        "record_s": recorded.seconds,
        "replay_s": replayed.seconds,
        "console_bytes": [recorded.console, replayed.console],
        "user_rdtsc": [recorded.user_rdtsc, replayed.user_rdtsc],
        "end": format!("{:?}", recorded.end),
    })
}

/// Where two lists differ; what only one of them has differs, too.
fn differing(one: &[u64], other: &[u64]) -> Vec<usize> {
    let longer = one.len().max(other.len());
    (0..longer).filter(|&at| one.get(at) != other.get(at)).collect()
}

/// Which pages differ is told of so many.
const PAGES_TOLD: usize = 16;
