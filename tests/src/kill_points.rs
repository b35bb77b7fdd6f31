//! The suite `kill-points`: the primary dies at every k-th record of its log, and each time the history that the clients
//! saw must be one that a single never-failing server could have produced.
//!
//! A first run learns how many records the workload makes. Then one run for each point. The record's number also says how
//! the primary dies (`vmm/src/ft/die.rs`): in the moment in which the record is appended, or when it was acked and what
//! it let go has left, or some time later, in which nothing of the log left any more. The points take turns in that.
//! With mirrored disks the guest is booted anew from the survivor's own image each time, and has to have everything.
//! `cargo xtask kill-points` plays 200 points with release programs, `tests/kill_points.rs` some in every test run.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{bail, ensure};
use clap::ValueEnum;
use serde::Serialize;

use crate::demo::{Demo, Report, Spread};
use crate::programs;
use crate::qemu::suite::target;

/// The clients of the workload: few, so that a run is quick.
const CLIENTS: &str = "4";
/// How long the workload runs before its first end, in ms; its records are the points.
const WORKLOAD_MS: &str = "300";
/// How long the clients go on with the survivor, in ms.
const AFTERWARDS_MS: &str = "300";
/// Between one run and the next the number of records before the clients start varies by a few.
const START_MARGIN: u64 = 60;

/// A record's remainder by this says how the primary dies at it.
const MANNERS: u64 = 4;

/// How the hosts have the guest's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Disk {
    /// Both have the same one
    Shared,
    /// Each has an image of its own
    Mirror,
}

impl Disk {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Shared => &["--disk", "shared"],
            Self::Mirror => &["--disk", "mirror", "--boot-again"],
        }
    }
}

/// What came of the suite.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    seed: u64,
    disk: Disk,
    points: u64,
    first_record: u64,
    last_record: u64,
    acked_ops: u64,
    outage_ms: Option<Spread>,
    takeover_ms: Option<Spread>,
    seconds: f64,
    /// One sentence for each point at which a client noticed.
    pub failures: Vec<String>,
}

/// Plays the suite and tells what came of it.
pub fn run(points: u64, seed: u64, disk: Disk, json: bool) -> anyhow::Result<()> {
    let demo = Demo::new(programs::release("lockstep")?, logs())?;
    let outcome = play(&demo, points, seed, disk, |line| eprintln!("{line}"))?;
    if json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        println!("{outcome:#?}");
    }
    if !outcome.failures.is_empty() {
        bail!("Clients noticed at {} of {points} points", outcome.failures.len());
    }
    Ok(())
}

/// Where failed runs leave their logs.
pub fn logs() -> PathBuf {
    target().join("kill-points")
}

/// Plays the suite with any `demo`; `tell` hears of the progress.
pub fn play(demo: &Demo, points: u64, seed: u64, disk: Disk, tell: impl Fn(&str)) -> anyhow::Result<Outcome> {
    let began = Instant::now();
    let seed_word = seed.to_string();
    let workload = [
        "--clients",
        CLIENTS,
        "--seed",
        &seed_word,
        "--end-after",
        AFTERWARDS_MS,
    ];
    let workload = [&workload[..], disk.arguments()].concat();
    let known = demo.play(
        "reference",
        &[&workload[..], &["--kill-after", WORKLOAD_MS]].concat(),
    )?;
    let first = known.log_records_at_start + START_MARGIN;
    ensure!(
        known.log_records > first + points,
        "The workload made {} records only, too few for {points} points",
        known.log_records
    );
    tell(&format!(
        "the workload makes {} records; the primary dies at {points} of them",
        known.log_records
    ));
    let mut reports: Vec<Report> = Vec::new();
    let mut failures = Vec::new();
    for point in 0..points {
        let near = first + point * (known.log_records - first) / points;
        let record = (near - near % MANNERS + point % MANNERS).to_string();
        match demo.play(
            &format!("record-{record}"),
            &[&workload[..], &["--kill-at-record", &record]].concat(),
        ) {
            Ok(report) => reports.push(report),
            Err(error) => {
                tell(&format!("record {record}: {error:#}"));
                failures.push(format!("{error:#}"));
            }
        }
        let done = reports.len() + failures.len();
        if done.is_multiple_of(TELL_EVERY) {
            tell(&format!(
                "{done} of {points} points, {} failed, {:.0} s",
                failures.len(),
                began.elapsed().as_secs_f64()
            ));
        }
    }
    Ok(Outcome {
        seed,
        disk,
        points,
        first_record: first,
        last_record: known.log_records,
        acked_ops: reports.iter().map(|report| report.acked_ops).sum(),
        outage_ms: Spread::of(reports.iter().map(|report| report.outage_ms)),
        takeover_ms: Spread::of(reports.iter().filter_map(|report| report.takeover_ms)),
        seconds: began.elapsed().as_secs_f64().round(),
        failures,
    })
}

const TELL_EVERY: usize = 20;
