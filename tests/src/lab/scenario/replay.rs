//! `lab replay`: a boot of the Debian guest is recorded on one emulated host and executed again from its log. Both must
//! have made the same exits with the same registers, and no page of memory may differ.

use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use super::Order;
use crate::lab::host_image::GUEST;
use crate::lab::report::Report;
use crate::lab::wires::Node;
use crate::lab::world::World;

/// The program that does both; an example of the VMM.
pub const EXAMPLE: &str = "replay_linux";

/// Tells the story once.
pub fn play(order: &Order) -> anyhow::Result<Report> {
    let world = World::build(&order.setting, "replay")?;
    let script = format!(
        "{EXAMPLE} --kernel {GUEST}/vmlinuz --initrd {GUEST}/initrd --disk /dev/vda --json < /dev/null"
    );
    let said = world.host(Node::A).run_for(&script, TIME)?;
    let line = said.lines().last().unwrap_or_default();
    let found: Value = serde_json::from_str(line).with_context(|| format!("The replay said {line:?}"))?;

    let mut report = order.report("replay");
    for (key, words) in FIGURES {
        let Some(value) = found.get(key) else {
            bail!("The replay said nothing of {key}")
        };
        report.figure(key, words, value.clone());
    }
    for key in ["diverged_exits", "differing_pages"] {
        report.must(found[key] == 0, format!("{key} is {}", found[key]));
    }
    Ok(report)
}

const FIGURES: [(&str, &str); 5] = [
    ("exits", "Exits"),
    ("diverged_exits", "Exits that differ"),
    ("pages", "Pages of memory"),
    ("differing_pages", "Pages that differ"),
    ("log_bytes", "Log, bytes"),
];
const TIME: Duration = Duration::from_secs(400);
