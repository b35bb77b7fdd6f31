//! The suite `faults`: real programs on this machine's KVM are struck by one fault after the other, and what the clients
//! wrote down must be what one never-failing server could have told them.
//!
//! What happens is told by `lockstep_demo::campaign`; every key's history is judged by `judge`. `cargo xtask faults`
//! plays 500 faults with release programs, CI some of them in every run.

mod judge;

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::bail;
use lockstep_demo::campaign::{Life, Wish, campaign};
use serde::Serialize;

use self::judge::Verdict;
use crate::programs;
use crate::qemu::suite::target;

/// What came of the suite. Keys are never renamed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    seed: u64,
    /// Faults that struck.
    faults: u64,
    /// Which, how often.
    kinds: BTreeMap<&'static str, u64>,
    /// VMs that were powered on.
    lives: u64,
    /// Starts of a pair that failed, and were tried again.
    failed_starts: u64,
    /// Keys whose last look lacks an acknowledged write.
    lost_ops: u64,
    /// Keys about which clients were told what no single server could have told them.
    wrong_replies: u64,
    broken_connections: u64,
    /// Times at which two hosts were seen talking to the outside.
    double_life: u64,
    /// Keys whose whole history was judged.
    histories_checked: u64,
    /// Operations in them.
    operations: u64,
    /// The longest that any client waited; faults last up to 1.5 s.
    longest_wait_ms: f64,
    seconds: f64,
    /// One sentence for each life that went wrong.
    failures: Vec<String>,
}

/// Plays the suite and tells what came of it.
pub fn run(faults: u32, seed: u64, json: bool) -> anyhow::Result<()> {
    let wish = Wish {
        lockstep: programs::release("lockstep")?,
        logs: target().join("faults"),
        seed,
        faults,
    };
    let began = Instant::now();
    let mut outcome = Outcome {
        seed,
        ..Outcome::default()
    };
    campaign(&wish, |life| {
        let right = outcome.add(life);
        eprintln!(
            "life {} ({:?} disk): {} faults, {} operations; {} faults so far, {} lives went wrong, {:.0} s",
            life.seed,
            life.disk,
            life.faults.len(),
            life.operations.len(),
            outcome.faults,
            outcome.failures.len(),
            began.elapsed().as_secs_f64()
        );
        right
    })?;
    outcome.seconds = began.elapsed().as_secs_f64().round();
    if json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        println!("{outcome:#?}");
    }
    if !outcome.failures.is_empty() {
        bail!("{} of {} lives went wrong", outcome.failures.len(), outcome.lives);
    }
    Ok(())
}

impl Outcome {
    /// Judges a life; answers whether it was right.
    fn add(&mut self, life: &Life) -> bool {
        let Verdict { keys, lost, wrong } = judge::judge(&life.operations);
        self.lives += 1;
        self.failed_starts += life.failed_starts;
        self.faults += life.faults.len() as u64;
        for fault in &life.faults {
            *self.kinds.entry(fault.kind).or_default() += 1;
        }
        self.lost_ops += lost.len() as u64;
        self.wrong_replies += wrong.len() as u64;
        self.broken_connections += life.broken;
        self.double_life += life.double_life;
        self.histories_checked += keys;
        self.operations += life.operations.len() as u64;
        self.longest_wait_ms = self.longest_wait_ms.max(life.longest_wait.as_secs_f64() * 1e3);
        let told: Vec<_> = life.faults.iter().map(|fault| fault.told.as_str()).collect();
        let story = told.join("; ");
        let complaints = self.failures.len();
        let mut complain = |what: String| {
            let failure = format!("Life {} ({story}): {what}", life.seed);
            eprintln!("{failure}");
            self.failures.push(failure);
        };
        if let Some(failed) = &life.failed {
            complain(failed.clone());
        }
        if life.double_life > 0 {
            complain(format!("two hosts were live {} times", life.double_life));
        }
        if !lost.is_empty() {
            complain(format!("keys that lost something: {lost:?}"));
        }
        if !wrong.is_empty() {
            complain(format!("keys that were told of wrongly: {wrong:?}"));
        }
        self.failures.len() == complaints
    }
}
