//! `lab failover`: clients talk to the guest, the primary's host loses its power, and no client may notice more than a
//! pause. Then the survivor loses its power, too, and what it leaves on its disk must be whole.

use std::time::Duration;

use super::{Fault, Order, survive};
use crate::lab::report::{Report, ms};
use crate::lab::wires::Node;
use crate::lab::world::{Protection, World};

/// Tells the story as often as ordered, each time in a new world.
pub fn play(order: &Order) -> anyhow::Result<Report> {
    let mut faults = Vec::new();
    for run in 0..order.runs {
        let seed = order.seed + u64::from(run);
        let mut world = World::build(&order.setting, &format!("failover-{run}"))?;
        world.power_on(Protection::Pair)?;
        order.check_vcpus(&world)?;
        let delay = delay(seed);
        let fault = survive(&mut world, order, seed, delay, |world| {
            world.host_mut(Node::A).kill();
            Ok(())
        })?;
        eprintln!(
            "run {} of {}: killed after {} ms and {} replies; outage {} ms, {} replies in all",
            run + 1,
            order.runs,
            ms(delay),
            fault.acked_before,
            ms(fault.seen.longest_gap),
            fault.seen.acked
        );
        faults.push(fault);
    }
    let mut report = order.report("failover");
    report.figure("runs", "Runs", order.runs);
    report.figure("clients", "Connections", order.clients);
    tell(&mut report, &faults);
    Ok(report)
}

/// Adds what was seen of some faults, and what must not have been.
pub(super) fn tell(report: &mut Report, faults: &[Fault]) {
    let sum = |of: &dyn Fn(&Fault) -> u64| faults.iter().map(of).sum::<u64>();
    let on_disk = |of: fn(&super::OnDisk) -> u64| sum(&|fault| fault.on_disk.as_ref().map_or(0, of));
    let acked = sum(&|fault| fault.seen.acked);
    let lost = sum(&|fault| fault.losses.lost) + on_disk(|disk| disk.losses.lost);
    let wrong = sum(&|fault| fault.seen.wrong + fault.losses.wrong) + on_disk(|disk| disk.losses.wrong);
    let broken = sum(&|fault| fault.seen.broken);
    let fsck = on_disk(|disk| disk.fsck.len() as u64);
    let mut outages: Vec<_> = faults.iter().map(|fault| fault.seen.longest_gap).collect();
    outages.sort_unstable();
    let worst_gap = faults
        .iter()
        .map(|fault| fault.gap_before)
        .max()
        .unwrap_or_default();

    report.figure("acked_ops", "Replies", acked);
    report.figure("lost_ops", "Acknowledged writes lost", lost);
    report.figure("wrong_replies", "Wrong replies", wrong);
    report.figure("broken_connections", "Broken connections", broken);
    report.figure("outage_ms", "Worst outage, ms", outages.last().copied().map(ms));
    report.figure(
        "outage_median_ms",
        "Median outage, ms",
        outages.get(outages.len() / 2).copied().map(ms),
    );
    report.figure("gap_before_ms", "Worst wait before the fault, ms", ms(worst_gap));
    for (key, of, words) in TAKEOVER {
        // A host that was live already took nothing over.
        let worst = faults
            .iter()
            .filter_map(|fault| fault.takeover[of].as_f64())
            .reduce(f64::max);
        report.figure(key, words, worst.map(|worst| (worst * 10.0).round() / 10.0));
    }
    let late = faults.iter().map(|fault| fault.late).max().unwrap_or_default();
    report.figure(
        "input_wait_ms",
        "Longest wait of an input for a window, survivor, ms",
        ms(late),
    );
    let deltas = faults.iter().map(|fault| fault.deltas).max().unwrap_or_default();
    report.figure("deltas", "Deltas before the fault", deltas);
    report.figure("fsck_errors", "File system errors", fsck);
    report.figure(
        "user_rdtsc",
        "rdtsc in the guest's user space, before and after",
        sum(&|fault| fault.user_rdtsc),
    );
    report.must(lost == 0, format!("{lost} acknowledged writes are lost"));
    report.must(wrong == 0, format!("{wrong} replies or values are wrong"));
    report.must(broken == 0, format!("{broken} connections broke"));
    report.must(fsck == 0, format!("e2fsck found {fsck} errors"));
    let complaints = faults
        .iter()
        .filter_map(|fault| fault.on_disk.as_ref())
        .flat_map(|disk| &disk.fsck);
    for story in faults
        .iter()
        .flat_map(|fault| &fault.seen.stories)
        .chain(complaints)
    {
        report.must(false, story.clone());
    }
}

const TAKEOVER: [(&str, &str, &str); 4] = [
    ("detect_ms", "detect_ms", "Takeover: worst detection, ms"),
    ("replay_ms", "replay_ms", "Takeover: worst replay, ms"),
    ("claim_ms", "claim_ms", "Takeover: worst claim, ms"),
    ("promote_ms", "promote_ms", "Takeover: worst promotion, ms"),
];
/// How long the clients have talked when the host dies: another moment for each seed.
fn delay(seed: u64) -> Duration {
    let scattered = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    Duration::from_millis(DELAY_MIN_MS + scattered % DELAY_SPREAD_MS)
}

const DELAY_MIN_MS: u64 = 1000;
const DELAY_SPREAD_MS: u64 = 5000;
