//! The main job of Lockstep as one command: two hosts, clients, a death and a verdict; and the bench beside it.
//!
//! `lockstep demo` and `lockstep bench` call [`demo`] and [`bench`]. This crate drives real processes by their paths
//! and never links the VMM: what it measures is what a user runs.

mod args;

pub use args::{Arbiter, BenchArgs, DemoArgs, Guest};

use std::process::ExitCode;

/// Runs the demo; exit code 0 only if no client noticed anything.
pub fn demo(_args: &DemoArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("Not yet")
}

/// Runs the bench.
pub fn bench(_args: &BenchArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("Not yet")
}
