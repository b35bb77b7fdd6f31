//! One run of `lockstep demo --json` and its report. The stories of `tests/faults.rs` and `tests/kill_points.rs` and the
//! suites `seeds` and `kill-points` are made of such runs; each of them adds what it alone wants to see.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

/// What the demo prints, as far as stories judge it.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    /// Replies received.
    pub acked_ops: u64,
    /// Acknowledged writes that were missing afterwards.
    pub lost_ops: u64,
    /// Replies that no never-failing server would have given.
    pub wrong_replies: u64,
    /// Connections that broke.
    pub broken_connections: u64,
    /// Acknowledged writes that a guest lacks that was booted anew from the survivor's disk, if one was.
    pub lost_after_boot: Option<u64>,
    /// What it has and nobody wrote.
    pub wrong_after_boot: Option<u64>,
    /// Replies that came while no host could have a term.
    pub leaked_ops: u64,
    /// The longest gap any client saw.
    pub outage_ms: f64,
    /// From the fault until the survivor noticed.
    pub detect_ms: Option<f64>,
    /// From the fault until the survivor was live.
    pub takeover_ms: Option<f64>,
    /// Replies a second before the fault.
    pub ops_per_s_before: f64,
    /// Replies a second after it.
    pub ops_per_s_after: f64,
    /// How many hosts are live in the end.
    pub live_hosts: u64,
    /// Which.
    pub survivor: Option<String>,
    /// In which term.
    pub survivor_term: Option<u64>,
    /// How the other ended.
    pub other_host: Option<String>,
    /// Records in the log when the clients started.
    pub log_records_at_start: u64,
    /// Records in the log at the fault.
    pub log_records: u64,
    /// What clients had to complain of.
    pub stories: Vec<String>,
}

/// The program that is run again and again.
#[derive(Clone, Debug)]
pub struct Demo {
    lockstep: PathBuf,
    logs: PathBuf,
}

impl Demo {
    /// Runs `lockstep`; what a failed run leaves behind (configuration, disk, the hosts' logs) stays below `logs`.
    pub fn new(lockstep: PathBuf, logs: PathBuf) -> anyhow::Result<Self> {
        // The demo says the same with an exit status; a story must not take that for an answer.
        ensure!(
            File::options().read(true).write(true).open("/dev/kvm").is_ok(),
            "The demo needs a usable /dev/kvm: `lockstep check` names the remedy"
        );
        Ok(Self { lockstep, logs })
    }

    /// Plays one run and checks what every run must end with: one live host in the next term, nothing lost, wrong,
    /// broken or leaked. `name` is the run's own.
    pub fn play(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Report> {
        let kept = self.logs.join(name);
        let said = self.play_and_keep(&kept, arguments);
        match &said {
            Ok(_) => {
                fs::remove_dir_all(&kept).with_context(|| format!("Cannot remove {}", kept.display()))?
            }
            Err(_) => {
                return said.with_context(|| format!("{name} failed; its logs are in {}", kept.display()));
            }
        }
        said
    }

    fn play_and_keep(&self, kept: &Path, arguments: &[&str]) -> anyhow::Result<Report> {
        if kept.exists() {
            fs::remove_dir_all(kept).with_context(|| format!("Cannot remove {}", kept.display()))?;
        }
        let output = Command::new(&self.lockstep)
            .args(["demo", "--json", "--keep"])
            .arg(kept)
            .args(arguments)
            .output()
            .context("Cannot start lockstep")?;
        let told = String::from_utf8_lossy(&output.stderr);
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(last) = text.lines().last() else {
            bail!("The demo ended ({}) without a report: {told}", output.status);
        };
        let report: Report = serde_json::from_str(last)
            .with_context(|| format!("The demo's last line is no report: {last}"))?;
        report.check().with_context(|| told.to_string())?;
        ensure!(
            output.status.success(),
            "The demo ended ({}) although its report is good: {told}",
            output.status
        );
        Ok(report)
    }
}

impl Report {
    fn check(&self) -> anyhow::Result<()> {
        let bad = [
            self.lost_ops,
            self.wrong_replies,
            self.broken_connections,
            self.leaked_ops,
        ];
        ensure!(
            bad == [0; 4],
            "{} operations lost, {} replies wrong, {} connections broken, {} replies leaked: {:?}",
            bad[0],
            bad[1],
            bad[2],
            bad[3],
            self.stories
        );
        let after_boot = [self.lost_after_boot, self.wrong_after_boot].map(Option::unwrap_or_default);
        ensure!(
            after_boot == [0; 2],
            "{} operations lost and {} values wrong on the survivor's disk",
            after_boot[0],
            after_boot[1]
        );
        ensure!(
            self.live_hosts == 1,
            "{} hosts are live in the end",
            self.live_hosts
        );
        ensure!(
            self.survivor_term == Some(2),
            "The survivor is in term {:?}",
            self.survivor_term
        );
        Ok(())
    }
}

/// The smallest, the middle and the largest of some numbers.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// The middle one.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of at least one number.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<_> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            min: *sorted.first()?,
            median: *sorted.get(sorted.len() / 2)?,
            max: *sorted.last()?,
        })
    }
}
