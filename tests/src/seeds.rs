//! The suite `seeds`: the demo as users run it, with one seed after the other. No client may notice in any of them, and
//! no outage may reach the bound.

use anyhow::{bail, ensure};
use serde::Serialize;

use crate::demo::{Demo, Report, Spread};
use crate::programs;
use crate::qemu::suite::target;

/// No client may wait longer than this, with the default timing.
const OUTAGE_MS_BOUND: f64 = 500.0;

/// What came of the suite.
#[derive(Clone, Debug, Serialize)]
struct Outcome {
    runs: u64,
    acked_ops: u64,
    outage_ms: Option<Spread>,
    detect_ms: Option<Spread>,
    takeover_ms: Option<Spread>,
    ops_per_s_before: Option<Spread>,
    ops_per_s_after: Option<Spread>,
    failures: Vec<String>,
}

/// Plays the demo with the seeds from 1 to `runs`.
pub fn run(runs: u64, json: bool) -> anyhow::Result<()> {
    ensure!(runs > 0, "Ask for at least one run");
    let demo = Demo::new(programs::release("lockstep")?, target().join("seeds"))?;
    let mut reports: Vec<Report> = Vec::new();
    let mut failures = Vec::new();
    eprintln!("seed  replies  outage ms  takeover ms  ops/s before  ops/s after");
    for seed in (1..=runs).map(|seed| seed.to_string()) {
        match demo.play(&format!("seed-{seed}"), &["--seed", &seed]) {
            Ok(report) => {
                eprintln!("{}", row(&seed, &report));
                if report.outage_ms >= OUTAGE_MS_BOUND {
                    failures.push(format!("Seed {seed}: a client waited {} ms", report.outage_ms));
                }
                reports.push(report);
            }
            Err(error) => {
                eprintln!("{seed:>4}  {error:#}");
                failures.push(format!("Seed {seed}: {error:#}"));
            }
        }
    }
    let outcome = Outcome {
        runs,
        acked_ops: reports.iter().map(|report| report.acked_ops).sum(),
        outage_ms: Spread::of(reports.iter().map(|report| report.outage_ms)),
        detect_ms: Spread::of(reports.iter().filter_map(|report| report.detect_ms)),
        takeover_ms: Spread::of(reports.iter().filter_map(|report| report.takeover_ms)),
        ops_per_s_before: Spread::of(reports.iter().map(|report| report.ops_per_s_before)),
        ops_per_s_after: Spread::of(reports.iter().map(|report| report.ops_per_s_after)),
        failures,
    };
    if json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        println!("{outcome:#?}");
    }
    if !outcome.failures.is_empty() {
        bail!("{} of {runs} seeds failed", outcome.failures.len());
    }
    Ok(())
}

fn row(seed: &str, report: &Report) -> String {
    format!(
        "{seed:>4}  {:>7}  {:>9.1}  {:>11.1}  {:>12.0}  {:>11.0}",
        report.acked_ops,
        report.outage_ms,
        report.takeover_ms.unwrap_or(f64::NAN),
        report.ops_per_s_before,
        report.ops_per_s_after
    )
}
