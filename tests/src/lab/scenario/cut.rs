//! `lab cut`: the cable between the hosts is pulled while clients talk to the guest. Both hosts live and both reach the
//! arbiter; exactly one may go on, and no client may notice more than a pause.

use std::time::Duration;

use super::{Order, failover, survive};
use crate::lab::report::Report;
use crate::lab::wires::{self, NODES, Node, Wire};
use crate::lab::world::{Protection, World};
use crate::qemu::processes::eventually;

/// Tells the story as often as ordered, each time in a new world.
pub fn play(order: &Order) -> anyhow::Result<Report> {
    let mut faults = Vec::new();
    for run in 0..order.runs {
        let seed = order.seed + u64::from(run);
        let mut world = World::build(&order.setting, &format!("cut-{run}"))?;
        world.power_on(Protection::Pair)?;
        let fault = survive(&mut world, order, seed, DELAY, |world| {
            wires::unplug(Wire::Pair, Node::A)?;
            eventually("one host to halt", HALT_TIME, || {
                Ok((running(world) == 1).then_some(()))
            })
        })?;
        wires::plug(Wire::Pair, Node::A)?;
        faults.push(fault);
    }
    let mut report = order.report("cut");
    report.figure("runs", "Runs", order.runs);
    report.figure("clients", "Connections", order.clients);
    let survivors: Vec<_> = faults.iter().map(|fault| fault.survivor.name()).collect();
    report.figure("survivors", "Who went on", survivors);
    failover::tell(&mut report, &faults);
    Ok(report)
}

/// How many hosts still run the VM.
fn running(world: &World) -> usize {
    let runs = |node: &&Node| world.host(**node).run("pidof lockstep").is_ok();
    NODES.iter().filter(runs).count()
}

const DELAY: Duration = Duration::from_secs(2);
const HALT_TIME: Duration = Duration::from_secs(30);
