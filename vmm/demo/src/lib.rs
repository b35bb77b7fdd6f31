//! The main job of Lockstep as one command: two hosts, clients, a death and a verdict; and the bench beside it.
//!
//! `lockstep demo` and `lockstep bench` call [`demo`] and [`bench()`]. This crate drives real processes by their paths
//! and never links the VMM: what it measures is what a user runs. Read `timeline.rs` first: it is the story of the demo
//! from top to bottom; `world` is where it plays, `client` who watches, `report` what is said in the end.
#![forbid(unsafe_code)]

mod args;
mod bench;
pub mod campaign;
mod client;
mod clock;
mod fault;
pub mod outside;
mod progress;
mod report;
mod rounds;
mod samples;
mod stage;
mod timeline;
mod world;

pub use args::{Arbiter, BenchArgs, DemoArgs, Disk, Guest, Processors};

use std::process::ExitCode;

use self::progress::Progress;
use self::report::Report;

/// Runs the demo. Exit code 0 only if no client noticed anything, 2 without a usable /dev/kvm.
pub fn demo(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    if let Some(code) = stage::missing_kvm() {
        return Ok(code);
    }
    let mut progress = Progress::new();
    if let Some(count) = args.rounds {
        let report = stage::play(rounds::tell(args, count, &mut progress))?;
        progress.end();
        return report.print(args.json);
    }
    let seen = stage::play(timeline::tell(args, &mut progress))?;
    progress.end();
    Report::new(args, seen).print(args.json)
}

/// Runs the bench. Exit code 2 without a usable /dev/kvm.
pub fn bench(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    if let Some(code) = stage::missing_kvm() {
        return Ok(code);
    }
    let mut progress = Progress::new();
    let outcome = stage::play(bench::run(args, &mut progress))?;
    progress.end();
    bench::report::Report::new(args, &outcome).print(args.json)?;
    Ok(ExitCode::SUCCESS)
}
