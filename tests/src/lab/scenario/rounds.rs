//! `lab rounds`: clients talk to the guest, the primary's host loses its power, comes back as a spare, and the survivor makes
//! a new backup of its running VM; then it is the survivor's turn. In the end both hosts lose their power, and what they leave
//! on their disks must be whole.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lockstep_demo::outside::Outside;
use serde_json::Value;

use super::{End, MORE_REPLIES, Order, conclude, until_acked};
use crate::lab::config::Guest;
use crate::lab::report::{Report, ms};
use crate::lab::wires::{GUEST, Node};
use crate::lab::world::{Protection, World};
use crate::qemu::processes::eventually;

/// One death and what came after it.
struct Round {
    died: Node,
    takeover: Duration,
    unprotected: Duration,
    copy: Value,
}

/// Tells the story once, with as many deaths as ordered.
pub fn play(order: &Order) -> anyhow::Result<Report> {
    if order.setting.guest == Guest::Postgres {
        bail!("The clients of this story talk to redis: leave --guest out");
    }
    let mut world = World::build(&order.setting, "rounds")?;
    world.power_on(Protection::Pair)?;
    let outside = Outside::start(GUEST, order.clients, order.seed)?;
    let mut rounds = Vec::new();
    let told = (0..order.runs).try_for_each(|number| {
        rounds.push(round(&mut world, order, &outside)?);
        let round = rounds.last().context("It was just added")?;
        eprintln!(
            "death {} of {}: {} died; live after {} ms, protected after {} ms; the copy: {}",
            number + 1,
            order.runs,
            round.died.name(),
            ms(round.takeover),
            ms(round.unprotected),
            round.copy
        );
        anyhow::Ok(())
    });
    let goes_on = told.and_then(|()| more_replies(order, &outside));
    let End {
        seen,
        losses,
        on_disk,
        ..
    } = conclude(&mut world, order, outside, goes_on)?;
    let on_disk = on_disk.unwrap_or_default();
    let lost = losses.lost + on_disk.losses.lost;
    let wrong = seen.wrong + losses.wrong + on_disk.losses.wrong;
    let mut report = order.report("rounds");
    report.figure("deaths", "Deaths", order.runs);
    report.figure("clients", "Connections", order.clients);
    report.figure("acked_ops", "Replies", seen.acked);
    report.figure("lost_ops", "Acknowledged writes lost", lost);
    report.figure("wrong_replies", "Wrong replies", wrong);
    report.figure("broken_connections", "Broken connections", seen.broken);
    report.figure("fsck_errors", "File system errors", on_disk.fsck.len());
    report.figure("outage_ms", "Worst outage, ms", ms(seen.longest_gap));
    tell(&mut report, &rounds);
    report.must(lost == 0, format!("{lost} acknowledged writes are lost"));
    report.must(wrong == 0, format!("{wrong} replies or values are wrong"));
    report.must(seen.broken == 0, format!("{} connections broke", seen.broken));
    for story in seen.stories.into_iter().chain(on_disk.fsck) {
        report.must(false, story);
    }
    Ok(report)
}

/// What the rounds took, each of them.
fn tell(report: &mut Report, rounds: &[Round]) {
    let each = |of: fn(&Round) -> Value| rounds.iter().map(of).collect::<Vec<_>>();
    report.figure(
        "takeover_ms",
        "From a death until the survivor was live, ms",
        each(|round| ms(round.takeover).into()),
    );
    report.figure(
        "unprotected_ms",
        "From a death until the VM was protected again, ms; the boot of the host is in it",
        each(|round| ms(round.unprotected).into()),
    );
    report.figure(
        "stop_ms",
        "The guest stood still for the copy, ms",
        each(|round| round.copy["stop_ms"].clone()),
    );
    report.figure(
        "copy_s",
        "The copy took, s",
        each(|round| round.copy["seconds"].clone()),
    );
    report.figure(
        "copied_bytes",
        "Bytes that went over",
        each(|round| round.copy["bytes"].clone()),
    );
}

/// A death, and a new backup.
fn round(world: &mut World, order: &Order, outside: &Outside) -> anyhow::Result<Round> {
    more_replies(order, outside)?;
    let died = world.live()?;
    let survivor = died.other();
    let death = Instant::now();
    world.host_mut(died).kill();
    wait_for_role(world, survivor, "alone")?;
    let takeover = death.elapsed();
    world.switch_on(&order.setting, died)?;
    world.start_spare(died)?;
    wait_for_role(world, survivor, "primary")?;
    Ok(Round {
        died,
        takeover,
        unprotected: death.elapsed(),
        copy: world.status(survivor)?["copy"].clone(),
    })
}

fn more_replies(order: &Order, outside: &Outside) -> anyhow::Result<()> {
    until_acked(
        outside,
        outside.seen().acked + u64::from(order.clients) * MORE_REPLIES,
    )
}

fn wait_for_role(world: &mut World, node: Node, role: &str) -> anyhow::Result<()> {
    eventually(&format!("node {} to be {role}", node.name()), ROLE_TIME, || {
        let status = world.status_if_running(node)?;
        Ok((status["role"] == role).then_some(()))
    })
}

/// An emulated host copies some MiB a second.
const ROLE_TIME: Duration = Duration::from_secs(240);
