//! The suite `mutants-protocol`: known bugs are planted in copies of the protocol, one each, and the simulator or the
//! model has to find every one. A bug that nobody finds is a hole in the oracle.
//!
//! `plants` lists the bugs, `workshop` makes a copy for each and builds it. Nothing is planted in what ships: the copies
//! lie under `target`, and a plant whose place in the source has changed fails the suite instead of being left out.

mod plant;
mod plants;
mod workshop;

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use serde::Serialize;

pub use plant::Plant;
pub use plants::PLANTS;
use workshop::Workshop;

/// Every planted bug must be found within so many seeds.
pub const SEEDS: u64 = 10_000;

/// What came of the suite.
#[derive(Clone, Debug, Serialize)]
struct Report {
    planted: usize,
    found: usize,
    survived: Vec<&'static str>,
    wall_s: f64,
}

/// Plants every bug with `only` in its name and looks for it.
///
/// # Errors
/// When one of them is not found.
pub fn run(only: &str, json: bool) -> anyhow::Result<()> {
    let began = Instant::now();
    let plants: Vec<_> = PLANTS.iter().filter(|plant| plant.name.contains(only)).collect();
    ensure!(!plants.is_empty(), "No planted bug has {only:?} in its name");
    let workshop = Workshop::open()?;
    plants.iter().try_for_each(|plant| workshop.plant(plant))?;
    workshop.build(&plants)?;
    let mut survived = Vec::new();
    for plant in &plants {
        let found = hunt(&workshop, plant)?;
        eprintln!("{:<28} {}", plant.name, found.as_deref().unwrap_or("SURVIVED"));
        if found.is_none() {
            survived.push(plant.name);
        }
    }
    let report = Report {
        planted: plants.len(),
        found: plants.len() - survived.len(),
        survived,
        wall_s: began.elapsed().as_secs_f64(),
    };
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report:#?}");
    }
    if !report.survived.is_empty() {
        bail!("Planted bugs that nobody found: {:?}", report.survived);
    }
    Ok(())
}

/// Who found the bug and how, in one line; nothing if nobody did.
fn hunt(workshop: &Workshop, plant: &Plant) -> anyhow::Result<Option<String>> {
    let output = Command::new(workshop.program(plant))
        .arg(SEEDS.to_string())
        .output()
        .with_context(|| format!("Cannot run the copy with {}", plant.name))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    match last.split_once(' ') {
        Some(("found", how)) => Ok(Some(how.to_owned())),
        _ if last == "survived" => Ok(None),
        _ => bail!(
            "The copy with {} ended without a result: {}",
            plant.name,
            String::from_utf8_lossy(&output.stderr)
        ),
    }
}
