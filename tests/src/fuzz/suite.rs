//! What `cargo xtask fuzz` does: builds the programs of `tests/fuzz` with a stable compiler and lets each run for a while
//! over its corpus. What it finds that is new stays under `target`; what is worth keeping is copied by hand.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::slice;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

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
/// No input may take longer, in seconds, nor all of them more memory, in MiB. What hangs does so for ever; a target that shares
/// its processor with a lab may stand still for seconds.
const LIMITS: [&str; 2] = ["-timeout=60", "-rss_limit_mb=1024"];
/// The compiler's own target: with it named, build scripts and macros are built without coverage.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// What came of the suite.
#[derive(Clone, Debug, Serialize)]
struct Report {
    seconds_each: u64,
    wall_s: f64,
    executions: u64,
    failed: Vec<&'static str>,
    targets: Vec<Done>,
}

/// What came of one target.
#[derive(Clone, Debug, Serialize)]
pub struct Done {
    /// Which.
    pub name: &'static str,
    /// Nothing was found.
    pub ok: bool,
    /// How many inputs were tried.
    pub executions: u64,
    /// How much time it really had on a processor.
    pub cpu_s: f64,
    /// The most memory that it had at once.
    pub peak_rss_mb: u64,
}

/// How often to look whether a target is done.
const LOOK: Duration = Duration::from_millis(100);

/// Runs every target with `only` in its name for so many seconds, `jobs` of them side by side.
///
/// # Errors
/// When one of them crashes, hangs or grows.
pub fn run(only: &str, seconds: u64, jobs: usize, json: bool) -> anyhow::Result<()> {
    let began = Instant::now();
    let targets: Vec<_> = TARGETS
        .iter()
        .filter(|target| target.name.contains(only))
        .collect();
    ensure!(!targets.is_empty(), "No target has {only:?} in its name");
    let programs = Programs::build()?;
    let left = Mutex::new(targets.iter());
    let done = thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.max(1))
            .map(|_| {
                scope.spawn(|| -> anyhow::Result<Vec<Done>> {
                    let mut done = Vec::new();
                    while let Some(target) = next(&left) {
                        done.push(programs.fuzz(target, seconds)?);
                    }
                    Ok(done)
                })
            })
            .collect();
        let outcomes = workers.into_iter().map(|worker| {
            worker
                .join()
                .unwrap_or_else(|_| bail!("A thread that waits for a target died"))
        });
        outcomes.collect::<anyhow::Result<Vec<_>>>()
    })?;
    let targets = done.concat();
    let report = Report {
        seconds_each: seconds,
        wall_s: began.elapsed().as_secs_f64(),
        executions: targets.iter().map(|done| done.executions).sum(),
        failed: targets
            .iter()
            .filter(|done| !done.ok)
            .map(|done| done.name)
            .collect(),
        targets,
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

fn next<'a>(left: &Mutex<slice::Iter<'_, &'a Target>>) -> Option<&'a Target> {
    left.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .next()
        .copied()
}

/// The programs of all targets, built.
#[derive(Debug)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Builds them.
    ///
    /// # Errors
    /// When they do not compile.
    pub fn build() -> anyhow::Result<Self> {
        let folder = target_folder().join("fuzz");
        build(&folder)?;
        Ok(Self { folder })
    }

    /// Lets one run for so many seconds.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn fuzz(&self, target: &Target, seconds: u64) -> anyhow::Result<Done> {
        let name = target.name;
        let folder = |what: &str| self.folder.join(what).join(name);
        for folder in [folder("found"), folder("failed")] {
            fs::create_dir_all(&folder).with_context(|| format!("Cannot make {}", folder.display()))?;
        }
        let log = self.folder.join(format!("{name}.log"));
        let said = File::create(&log).with_context(|| format!("Cannot write {}", log.display()))?;
        let program = self.folder.join(TRIPLE).join("release").join(name);
        let mut child = Command::new(&program)
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-artifact_prefix={}/", folder("failed").display()))
            .args([LENGTH_MAX, "-print_final_stats=1", "-verbosity=1"])
            .args(LIMITS)
            .arg(folder("found"))
            .arg(corpora().join(name))
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .with_context(|| format!("Cannot run {}", program.display()))?;
        let mut cpu_s = 0.0;
        let status = loop {
            cpu_s = processor_time(child.id()).unwrap_or(cpu_s);
            match child.try_wait().context("Cannot wait for a target")? {
                Some(status) => break status,
                None => thread::sleep(LOOK),
            }
        };
        let said = fs::read_to_string(&log).with_context(|| format!("Cannot read {}", log.display()))?;
        let done = Done {
            name,
            ok: status.success(),
            executions: stat(&said, "number_of_executed_units"),
            cpu_s,
            peak_rss_mb: stat(&said, "peak_rss_mb"),
        };
        if !done.ok {
            let lines: Vec<_> = said.lines().collect();
            eprintln!("{}", lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n"));
        }
        eprintln!(
            "{name}: {} executions in {cpu_s:.1} s of a processor, at most {} MB",
            done.executions, done.peak_rss_mb
        );
        Ok(done)
    }
}

/// So many lines are shown of what a target that failed said.
const LINES_SHOWN: usize = 60;

/// How long a process has been on processors so far, in seconds; nothing when it is gone.
fn processor_time(id: u32) -> Option<f64> {
    let process = procfs::process::Process::new(id.cast_signed()).ok()?;
    let stat = process.stat().ok()?;
    Some((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64)
}

/// A number that libFuzzer says at its end.
fn stat(said: &str, name: &str) -> u64 {
    let prefix = format!("stat::{name}:");
    let line = said.lines().find_map(|line| line.strip_prefix(&prefix));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

fn build(folder: &Path) -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args([
            "build",
            "--release",
            "--locked",
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
