//! What `cargo xtask nightly` does: the searches that never end, in turn, for as long as it is given. The checked model
//! and the planted bugs come first and once; then simulated worlds and fuzz targets change places until time is up.
//!
//! It begins where no night before it did: worlds from a seed of its own, targets from what they found so far.

use std::env;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use serde::Serialize;

use crate::fuzz::TARGETS;
use crate::fuzz::suite::Programs;
use crate::mutants;
use crate::sim::campaign::{self, Until};
use crate::sim::suite::keep;

/// How long worlds, and then one target, have the machine.
const TURN: Duration = Duration::from_secs(60);
/// So many worlds are run before somebody looks at the clock.
const WORLDS: u64 = 2_000;
/// Nights shorter than this have no time for the deep model and the planted bugs.
const LONG: Duration = Duration::from_secs(45 * 60);

/// What came of the night.
#[derive(Clone, Debug, Default, Serialize)]
struct Report {
    seeds: u64,
    from: u64,
    violations: usize,
    simulated_hours: f64,
    executions: u64,
    turns: u64,
    failed: Vec<String>,
    wall_s: f64,
}

/// Searches for so many minutes.
///
/// # Errors
/// When something was found.
pub fn run(minutes: u64, json: bool) -> anyhow::Result<()> {
    let began = Instant::now();
    let time = Duration::from_secs(minutes * 60);
    let programs = Programs::build()?;
    let mut report = Report {
        from: fresh_seed()?,
        ..Report::default()
    };
    report.note("model", model_apart(time >= LONG));
    if time >= LONG {
        report.note("mutants-protocol", mutants::run("", false));
    }
    let mut next = report.from;
    for target in TARGETS.iter().cycle() {
        if began.elapsed() >= time {
            break;
        }
        let turn = Instant::now();
        while turn.elapsed() < TURN && began.elapsed() < time {
            report.simulate(next)?;
            next += WORLDS;
        }
        let left = time.saturating_sub(began.elapsed()).min(TURN).as_secs();
        if left > 0 {
            let done = programs.fuzz(target, left)?;
            report.executions += done.executions;
            report.turns += 1;
            if !done.ok {
                report.failed.push(done.name.to_owned());
            }
        }
    }
    report.wall_s = began.elapsed().as_secs_f64();
    match json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => println!("{report:#?}"),
    }
    if report.violations > 0 || !report.failed.is_empty() {
        bail!(
            "{} seeds failed, and: {:?}; their stories are above",
            report.violations,
            report.failed
        );
    }
    Ok(())
}

impl Report {
    fn note(&mut self, suite: &str, outcome: anyhow::Result<()>) {
        if let Err(error) = outcome {
            eprintln!("{suite}: {error:#}");
            self.failed.push(suite.to_owned());
        }
    }

    fn simulate(&mut self, from: u64) -> anyhow::Result<()> {
        let findings = campaign::run(from, WORLDS, Until::Done);
        self.seeds += findings.seeds;
        self.simulated_hours += findings.simulated_hours;
        self.violations += findings.violations.len();
        for (seed, violation) in &findings.violations {
            let kept = keep(*seed)?;
            eprintln!(
                "Seed {seed}: {} ({}), kept as {}",
                violation.sentence,
                violation.invariant,
                kept.display()
            );
        }
        Ok(())
    }
}

/// The model, in a process of its own: the kernel counts the most memory that a process ever had for what it starts, too, and a
/// fuzz target that starts with a gigabyte looks like one that grew to it.
fn model_apart(deep: bool) -> anyhow::Result<()> {
    let mut model = Command::new(env::current_exe().context("This program cannot tell where it lies")?);
    model.arg("model").args(deep.then_some("--deep"));
    let status = model.status().context("Cannot start the model")?;
    ensure!(
        status.success(),
        "It found something and says above what, or it was killed"
    );
    Ok(())
}

/// A seed behind all that were run on any night before: a night has fewer worlds than this leaves between two seconds.
fn fresh_seed() -> anyhow::Result<u64> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("This machine's clock is before 1970")?;
    Ok(now.as_secs() * 100_000)
}
