//! `lab wan`: the two hosts are far apart. The guest must stay correct, through the death of a host too; what it costs
//! is measured beside the same guest unprotected, on the same hosts in the same run.

use std::time::Duration;

use anyhow::bail;
use lockstep_demo::outside;

use super::{Order, failover, survive};
use crate::lab::config::Guest;
use crate::lab::report::Report;
use crate::lab::wires::{GUEST, Node, Wire};
use crate::lab::world::{Protection, World};

/// Tells the story once.
pub fn play(order: &Order) -> anyhow::Result<Report> {
    if order.setting.guest == Guest::Postgres {
        bail!("What a far backup costs is measured with redis: leave --guest out");
    }
    let mut world = World::build(&order.setting, "wan")?;
    world.power_on(Protection::None)?;
    let alone = outside::measure(GUEST, order.clients, MEASURE)?;
    world.power_off()?;
    world.copy_image()?;

    world.worsen(Wire::Pair, &order.netem)?;
    world.power_on(Protection::Pair)?;
    let protected = outside::measure(GUEST, order.clients, MEASURE)?;
    let rtt_us = world.status(Node::A)?["peer"]["rtt_us"].clone();
    let fault = survive(&mut world, order, order.seed, DELAY, |world| {
        world.host_mut(Node::A).kill();
        Ok(())
    })?;

    let mut report = order.report("wan");
    report.figure("clients", "Connections", order.clients);
    report.figure("netem", "Each way of the pair's wire", order.netem.as_str());
    report.figure("rtt_us", "Round trip of the pair, us", rtt_us);
    let (alone, protected) = (serde_json::to_value(alone)?, serde_json::to_value(protected)?);
    for (key, words) in FIGURES {
        let sides = [&alone[key], &protected[key]];
        report.figure(
            key,
            &format!("{words}: alone, protected"),
            sides.map(Clone::clone).to_vec(),
        );
    }
    report.figure("unprotected", "", alone);
    report.figure("protected", "", protected);
    failover::tell(&mut report, &[fault]);
    Ok(report)
}

const MEASURE: Duration = Duration::from_secs(40);
const DELAY: Duration = Duration::from_secs(5);
const FIGURES: [(&str, &str); 6] = [
    ("get_p50_us", "GET p50, us"),
    ("get_p99_us", "GET p99, us"),
    ("set_p50_us", "SET p50, us"),
    ("set_p99_us", "SET p99, us"),
    ("pipelined_get_per_s", "Pipelined GET, 1/s"),
    ("pipelined_set_per_s", "Pipelined SET, 1/s"),
];
