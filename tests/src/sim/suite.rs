//! What `cargo xtask sim` does: runs many seeds, tells the story of the first that failed, and keeps those that did.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use serde::Serialize;

use super::campaign::{self, Findings, Until};
use super::model::Explored;
use super::{Outcome, Tally, model};

/// What came of the suite.
#[derive(Clone, Debug, Serialize)]
struct Report {
    seeds: u64,
    violations: usize,
    simulated_hours: f64,
    wall_s: f64,
    events: u64,
    #[serde(flatten)]
    tally: Tally,
    failed: Vec<u64>,
}

/// So many lines of a story are shown; the end is what matters.
const LINES_SHOWN: usize = 120;
/// So many failed seeds are kept of one run.
const KEPT: usize = 5;

/// Runs `seeds` worlds from `from` on.
///
/// # Errors
/// When one of them failed.
pub fn run(from: u64, seeds: u64, json: bool) -> anyhow::Result<()> {
    ensure!(seeds > 0, "Ask for at least one seed");
    let findings = campaign::run(from, seeds, Until::Done);
    for (seed, violation) in findings.violations.iter().take(KEPT) {
        eprintln!("Seed {seed}: {} ({})", violation.sentence, violation.invariant);
        let kept = keep(*seed)?;
        eprintln!("kept as {}", kept.display());
    }
    if let Some((seed, _)) = findings.violations.first() {
        eprintln!("\n{}", story(&super::tell(*seed)));
    }
    let report = report(&findings);
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report:#?}");
    }
    if report.violations > 0 {
        bail!("{} of {seeds} seeds failed", report.violations);
    }
    Ok(())
}

/// Tells the story of one seed.
///
/// # Errors
/// When it failed.
pub fn tell(seed: u64) -> anyhow::Result<()> {
    let outcome = super::tell(seed);
    println!("{}", outcome.story.join("\n"));
    match outcome.violation {
        Some(violation) => bail!("Seed {seed}: {} ({})", violation.sentence, violation.invariant),
        None => Ok(()),
    }
}

/// What came of the model.
#[derive(Clone, Debug, Serialize)]
struct Modelled {
    states: u64,
    steps: u64,
    violations: u64,
    wall_s: f64,
}

/// Explores the model.
///
/// # Errors
/// When something happens in it that must not; the error tells the shortest way to it.
pub fn model(deep: bool, json: bool) -> anyhow::Result<()> {
    let mut sum = Modelled {
        states: 0,
        steps: 0,
        violations: 0,
        wall_s: 0.0,
    };
    for bounds in if deep { model::DEEP } else { model::ORDINARY } {
        let explored = model::explore(bounds);
        let Explored {
            states, steps, depth, ..
        } = explored;
        eprintln!("{states} states, {steps} steps, the longest way {depth}, within {bounds:?}");
        sum.states += states;
        sum.steps += steps;
        sum.wall_s += explored.wall_s;
        if let Some((sentence, way)) = explored.violation {
            bail!("{sentence}, after {}", way.join(", "));
        }
    }
    match json {
        true => println!("{}", serde_json::to_string(&sum)?),
        false => println!("{sum:#?}"),
    }
    Ok(())
}

/// Where failed seeds are kept, to be run by every `cargo test`.
#[must_use]
pub fn kept_seeds() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("seeds")
}

/// Keeps the story of a failed seed.
///
/// # Errors
/// When there is no place for it.
pub fn keep(seed: u64) -> anyhow::Result<PathBuf> {
    let path = kept_seeds().join(format!("{seed}.txt"));
    let text = format!("seed {seed}\n\n{}\n", story(&super::tell(seed)));
    fs::create_dir_all(kept_seeds()).context("Cannot make the folder of kept seeds")?;
    fs::write(&path, text).with_context(|| format!("Cannot write {}", path.display()))?;
    Ok(path)
}

/// The end of a story, and what was wrong.
fn story(outcome: &Outcome) -> String {
    let lines = &outcome.story;
    let skipped = lines.len().saturating_sub(LINES_SHOWN);
    let mut text = lines[skipped..].join("\n");
    if skipped > 0 {
        text = format!("({skipped} lines before)\n{text}");
    }
    if let Some(violation) = &outcome.violation {
        text = format!("{} ({})\n\n{text}", violation.sentence, violation.invariant);
    }
    text
}

fn report(findings: &Findings) -> Report {
    Report {
        seeds: findings.seeds,
        violations: findings.violations.len(),
        simulated_hours: findings.simulated_hours,
        wall_s: findings.wall_s,
        events: findings.events,
        tally: findings.tally,
        failed: findings.violations.iter().map(|(seed, _)| *seed).collect(),
    }
}
