//! What `cargo xtask fuzz` does: builds the programs of `tests/fuzz` with a stable compiler and lets each run for a while
//! over its corpus. What it finds that is new stays under `target`; what is worth keeping is copied by hand.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use serde::Serialize;

use super::{TARGETS, Target, corpora};
use crate::qemu::suite::target as target_folder;

/// Coverage as libFuzzer wants it, from a compiler that has no switch for it.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";
/// The longest input, in bytes.
const LENGTH_MAX: &str = "-max_len=16384";
/// No input may take longer, in seconds, nor all of them more memory, in MiB.
const LIMITS: [&str; 2] = ["-timeout=5", "-rss_limit_mb=1024"];
/// The compiler's own target: with it named, build scripts and macros are built without coverage.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// What came of the suite.
#[derive(Clone, Debug, Serialize)]
struct Report {
    targets: usize,
    seconds_each: u64,
    failed: Vec<&'static str>,
    wall_s: f64,
}

/// Runs every target with `only` in its name for so many seconds.
///
/// # Errors
/// When one of them crashes, hangs or grows.
pub fn run(only: &str, seconds: u64, json: bool) -> anyhow::Result<()> {
    let began = Instant::now();
    let targets: Vec<_> = TARGETS
        .iter()
        .filter(|target| target.name.contains(only))
        .collect();
    ensure!(!targets.is_empty(), "No target has {only:?} in its name");
    let folder = target_folder().join("fuzz");
    build(&folder)?;
    let mut failed = Vec::new();
    for target in &targets {
        eprintln!("=== {}, {seconds} s", target.name);
        if !fuzz(&folder, target, seconds)? {
            failed.push(target.name);
        }
    }
    let report = Report {
        targets: targets.len(),
        seconds_each: seconds,
        failed,
        wall_s: began.elapsed().as_secs_f64(),
    };
    match json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => println!("{report:#?}"),
    }
    if !report.failed.is_empty() {
        bail!(
            "These targets failed; libFuzzer says above with which input: {:?}",
            report.failed
        );
    }
    Ok(())
}

fn build(folder: &Path) -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args([
            "build",
            "--release",
            "--quiet",
            "--target",
            TRIPLE,
            "--manifest-path",
        ])
        .arg(corpora().with_file_name("Cargo.toml"))
        .env("CARGO_TARGET_DIR", folder)
        .env("RUSTFLAGS", COVERAGE)
        .status()
        .context("Cannot run cargo")?;
    ensure!(
        status.success(),
        "The programs of the fuzzer do not compile; the message is above"
    );
    Ok(())
}

/// True if nothing was found.
fn fuzz(folder: &Path, target: &Target, seconds: u64) -> anyhow::Result<bool> {
    let found = folder.join("found").join(target.name);
    fs::create_dir_all(&found).with_context(|| format!("Cannot make {}", found.display()))?;
    let program: PathBuf = folder.join(TRIPLE).join("release").join(target.name);
    let status = Command::new(&program)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", folder.display()))
        .args([LENGTH_MAX, "-print_final_stats=1"])
        .args(LIMITS)
        .arg(&found)
        .arg(corpora().join(target.name))
        .status()
        .with_context(|| format!("Cannot run {}", program.display()))?;
    Ok(status.success())
}
