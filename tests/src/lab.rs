//! The lab: two emulated hosts, each with a real KVM, wires that can be made bad or cut, and clients outside. What a
//! machine without a usable KVM can still prove, `cargo xtask lab NAME` proves.
//!
//! A host is a QEMU with an emulated CPU that boots Debian's cloud kernel; inside it `lockstep run` protects a guest as
//! on any host. Killing the QEMU is a power cut. The test machine itself is the outside: clients and arbiter.
//!
//! Read in this order: this file (what `cargo xtask lab` does), [`scenario`] (the stories), [`world`] (hosts, disk,
//! arbiter, keys), [`host`] and [`agent`] (one emulated host and orders to it), [`wires`] (the cables), [`host_image`],
//! [`guest_image`] and [`postgres_image`] (what is booted), [`pgbench`] (clients of the latter), [`rdtsc`]
//! (a program that reads the counter in the guest's user space), [`readme`] (a guest that README makes), [`room`] (why nothing is left when a lab ends).

pub mod agent;
pub mod config;
pub mod guest_image;
pub mod host;
pub mod host_image;
pub mod packages;
pub mod pgbench;
pub mod postgres_image;
pub mod rdtsc;
pub mod readme;
pub mod report;
pub mod room;
pub mod scenario;
pub mod stock;
pub mod tree;
pub mod wires;
pub mod world;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use self::config::{Disks, Guest};
use self::host_image::State;
use self::report::Report;
use self::room::Folder;
use self::scenario::{Order, cut, failover, idle, power, replay, rounds, wan};
use self::world::Setting;
use crate::qemu::packages::Kernel;
use crate::qemu::suite::target;

/// Arguments of `cargo xtask lab`.
#[derive(Clone, Debug, Args)]
pub struct LabArgs {
    /// What is played
    #[arg(value_enum)]
    pub name: Name,
    /// What the VM boots
    #[arg(long, value_enum, default_value_t = Guest::Debian)]
    pub guest: Guest,
    /// Whose the guest's disk is
    #[arg(long, value_enum, default_value_t = Disks::Mirror)]
    pub disk: Disks,
    /// How many vCPUs the VM has; several run in epochs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub vcpus: u8,
    /// How often, where a story can be told often
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    /// How many TCP connections the clients have
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub clients: u16,
    /// What the clients do and when things happen
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// What the wire between the hosts is like in `wan`, each way, in words of netem
    #[arg(long, value_name = "WORDS", default_value = "delay 25ms loss 1% limit 10000")]
    pub netem: String,
    /// Print one JSON object as the last line
    #[arg(long)]
    pub json: bool,
    /// Get QEMU, kernel, redis and tools from Debian first where they are missing (as root)
    #[arg(long)]
    pub install: bool,
    /// Take Lockstep's programs from DIR instead of building them
    #[arg(long, value_name = "DIR")]
    pub programs: Option<PathBuf>,
    /// Keep consoles, logs and configuration in DIR; whatever is there is removed first
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
}

/// The stories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// The primary's host loses its power under load
    Failover,
    /// The wire between the hosts is pulled under load
    Cut,
    /// The hosts are 50 ms apart, and a frame in a hundred is lost
    Wan,
    /// Nothing happens: how much log is that?
    Idle,
    /// A recorded boot is executed again and compared
    Replay,
    /// Hosts lose their power in turn, each time after the survivor has made a new backup of itself; --runs says how often
    Rounds,
    /// The guest switches itself off, restarts, and is taken over in its second life
    Power,
    /// README's way to a protected Debian VM, typed as it stands there
    Readme,
}

/// Runs the lab. It fails with a sentence where something is missing; it never skips anything.
pub fn run(args: &LabArgs) -> anyhow::Result<()> {
    if args.vcpus > 1 && matches!(args.name, Name::Replay | Name::Readme) {
        bail!("A VM with several vCPUs is not recomputed, and README's has one; leave --vcpus out");
    }
    if room::is_inside() {
        room::guard(limit(args))?;
        return play(args);
    }
    if args.install {
        packages::install(needs(args))?;
    }
    packages::check(needs(args))?;
    if args.name == Name::Readme {
        // There is no way to Debian's mirrors from within the room.
        readme::make_guest()?;
    }
    if args.programs.is_none() {
        build(args)?;
    }
    match room::enter()? {}
}

fn needs(args: &LabArgs) -> packages::Needs {
    packages::Needs {
        postgres: args.guest == Guest::Postgres,
        debootstrap: args.name == Name::Readme,
    }
}

fn play(args: &LabArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    let folder = Folder::new(&target().join("lab"))?;
    wires::lay()?;
    let order = Order {
        setting: setting(args, folder.path())?,
        clients: args.clients,
        seed: args.seed,
        runs: args.runs,
        netem: args.netem.clone(),
    };
    let played = match args.name {
        Name::Failover => failover::play(&order),
        Name::Cut => cut::play(&order),
        Name::Wan => wan::play(&order),
        Name::Idle => idle::play(&order),
        Name::Replay => replay::play(&order),
        Name::Power => power::play(&order),
        Name::Rounds => rounds::play(&order),
        Name::Readme => scenario::readme::play(&order),
    };
    let right = played.as_ref().is_ok_and(|report| report.failures().is_empty());
    let kept = match &args.keep {
        Some(keep) => Some(keep.clone()),
        None if right => None,
        None => Some(target().join("lab/failed")),
    };
    if let Some(kept) = &kept {
        folder.keep_texts(kept)?;
        eprintln!("Consoles, logs and configuration are in {}", kept.display());
    }
    let mut report = played?;
    report.figure("seconds_in_all", "Took, s", start.elapsed().as_secs());
    tell(args, &report)
}

fn tell(args: &LabArgs, report: &Report) -> anyhow::Result<()> {
    match args.json {
        true => println!("{}", report.json()),
        false => println!("{}", report.table()),
    }
    match report.failures() {
        [] => Ok(()),
        failures => bail!("{}", failures.join("; ")),
    }
}

fn setting(args: &LabArgs, folder: &Path) -> anyhow::Result<Setting> {
    let kernel = packages::kernel()?;
    let programs = args.programs.clone().unwrap_or_else(|| target().join("release"));
    let examples = match args.name {
        Name::Replay => vec![programs.join("examples").join(replay::EXAMPLE)],
        _ => Vec::new(),
    };
    let image = |state| {
        let parts = host_image::Parts {
            kernel: &kernel,
            programs: &programs,
            examples: &examples,
            state,
        };
        host_image::build(&folder.join("host-image"), &parts)
    };
    if args.name == Name::Readme {
        let made = readme::make_guest()?;
        return Ok(Setting {
            guest: Guest::Debian,
            vcpus: args.vcpus,
            disks: Disks::Shared,
            image: image(State::Bare { boot: &made.boot })?,
            initramfs: None,
            disk: made.disk,
            kernel,
            programs,
            folder: folder.into(),
        });
    }
    let disk = folder.join("guest.raw");
    let initramfs = make_guest(args.guest, &folder.join("guest-image"), &disk, &kernel)?;
    Ok(Setting {
        guest: args.guest,
        vcpus: args.vcpus,
        disks: args.disk,
        image: image(State::Wired {
            guest: initramfs.as_deref(),
        })?,
        initramfs,
        disk,
        kernel,
        programs,
        folder: folder.into(),
    })
}

/// Makes a guest's disk, and the file system that it starts from if it has one.
fn make_guest(guest: Guest, folder: &Path, disk: &Path, kernel: &Kernel) -> anyhow::Result<Option<PathBuf>> {
    match guest {
        Guest::Micro => {
            File::create(disk)?.set_len(MICRO_DISK_BYTES)?;
            Ok(None)
        }
        Guest::Debian => {
            guest_image::make_disk(disk)?;
            guest_image::build(folder, kernel).map(Some)
        }
        Guest::Postgres => {
            let initramfs = postgres_image::build(folder, kernel)?;
            postgres_image::make_disk(disk, &initramfs, kernel)?;
            Ok(Some(initramfs))
        }
    }
}

fn build(args: &LabArgs) -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "--bins"]);
    for package in ["lockstep", "lockstep-arbiter", "vhost-net-ft", "vhost-blk-ft"] {
        command.args(["--package", package]);
    }
    if args.name == Name::Replay {
        command.args(["--example", replay::EXAMPLE]);
    }
    let status = command.status().context("Cannot run cargo")?;
    if !status.success() {
        bail!("Lockstep does not build");
    }
    Ok(())
}

/// Many times as long as it ever took.
fn limit(args: &LabArgs) -> Duration {
    let worlds = match args.name {
        Name::Failover | Name::Cut | Name::Rounds => args.runs,
        // A whole Debian; two lives, each told twice.
        Name::Readme | Name::Replay => 2,
        _ => 1,
    };
    LIMIT * worlds
}

const MICRO_DISK_BYTES: u64 = 64 << 20;
const LIMIT: Duration = Duration::from_secs(600);
