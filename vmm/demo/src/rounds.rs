//! The long story of the demo: the primary dies, a spare is started in its place, the survivor copies its VM to it while
//! clients go on asking, and then it is the survivor's turn to die. `lockstep demo --rounds N` tells it; `timeline` is
//! the short one.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use comfy_table::{Table, presets};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

use crate::args::{DemoArgs, Disk};
use crate::client::check::Losses;
use crate::client::load::{Judge, Load};
use crate::progress::Progress;
use crate::world::config::{GUEST, NODES};
use crate::world::hosts::Host;
use crate::world::namespace::Network;
use crate::world::{Wish, World};

/// What is said in the end; the JSON object. Keys are never renamed.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// Nothing lost, wrong or broken, and every round ended protected.
    ok: bool,
    seed: u64,
    clients: u16,
    rounds: Vec<Round>,
    /// Replies received.
    acked_ops: u64,
    /// Acknowledged writes that were missing afterwards.
    lost_ops: u64,
    wrong_replies: u64,
    broken_connections: u64,
    /// The longest gap that any client saw.
    outage_ms: f64,
    /// The longest that the guest stood still for a copy.
    stop_ms: f64,
    /// The longest from a death until the VM was protected again; starting the spare is in it.
    unprotected_ms: f64,
    survivor_term: u64,
    disk: &'static str,
    vcpus: u8,
    /// Acknowledged writes that were missing when the guest was booted from the mirrored image of each host alone.
    lost_after_boot: Option<u64>,
    wrong_after_boot: Option<u64>,
    stories: Vec<String>,
}

/// One death and what came after it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Round {
    /// Who died.
    died: String,
    /// From the death until the survivor was live.
    takeover_ms: f64,
    /// From the death until the VM was protected again.
    unprotected_ms: f64,
    /// How long the guest stood still for the copy.
    stop_ms: f64,
    copied_bytes: u64,
    copy_rounds: u32,
    /// Of a mirrored disk: whether all of it was copied, and how many bytes of it.
    disk_whole: Option<bool>,
    disk_bytes: Option<u64>,
    term: u64,
}

/// Plays the story. Must run in a `LocalSet`, after the namespace was entered.
pub(crate) async fn tell(args: &DemoArgs, count: u16, progress: &mut Progress) -> anyhow::Result<Report> {
    let wish = Wish {
        arbiter: args.arbiter,
        disk: args.disk,
        vcpus: args.vcpus,
        relay: false,
        keep: args.keep.clone(),
        verbose: args.verbose,
    };
    let mut world = World::new(&wish, Network::new().await?).await?;
    progress.event("starting backup b and primary a");
    let mut backup = world.start(NODES[1], "backup", &[])?;
    let mut primary = world.start(NODES[0], "primary", &[])?;
    world.wait_until_up(&mut primary, Some(&mut backup)).await?;
    let load = Load::start(GUEST, args.clients, args.seed).await?;
    progress.event(&format!("{} clients ask (seed {})", args.clients, args.seed));
    let mut moments = SmallRng::seed_from_u64(args.seed);
    let mut rounds = Vec::new();
    for number in 1..=count {
        tokio::time::sleep(Duration::from_millis(moments.random_range(CALM_MS))).await;
        let (survivor, spare, round) = play(&mut world, primary, backup).await?;
        progress.event(&format!(
            "round {number}: {} died; live after {} ms, protected after {} ms, stood still for {} ms; {} replies",
            round.died,
            round.takeover_ms,
            round.unprotected_ms,
            round.stop_ms,
            load.tally().acked
        ));
        rounds.push(round);
        (primary, backup) = (survivor, spare);
    }
    tokio::time::sleep(Duration::from_millis(*CALM_MS.end())).await;
    progress.event("clients stop; every key is read back over fresh connections");
    let (judge, losses) = load.finish().await?;
    let booted = match args.disk {
        Disk::Shared => None,
        Disk::Mirror => Some(boot_each(&mut world, primary, backup, &judge, progress).await?),
    };
    let after_boot = booted.map_or(0, |losses| losses.lost + losses.wrong);
    let (lost, wrong) = (losses.lost, judge.tally.wrong + losses.wrong);
    let worst = |of: fn(&Round) -> f64| rounds.iter().map(of).fold(0.0, f64::max);
    Ok(Report {
        ok: [lost, wrong, judge.tally.broken, after_boot] == [0; 4],
        seed: args.seed,
        clients: args.clients,
        acked_ops: judge.tally.acked,
        lost_ops: lost,
        wrong_replies: wrong,
        broken_connections: judge.tally.broken,
        outage_ms: tenths(judge.tally.longest_gap),
        stop_ms: worst(|round| round.stop_ms),
        unprotected_ms: worst(|round| round.unprotected_ms),
        survivor_term: rounds.last().map_or(0, |round| round.term),
        rounds,
        disk: args.disk.word(),
        vcpus: args.vcpus,
        lost_after_boot: booted.map(|losses| losses.lost),
        wrong_after_boot: booted.map(|losses| losses.wrong),
        stories: judge.tally.stories,
    })
}

/// Kills the primary and starts a spare in its place. Returns who is primary and backup then.
async fn play(world: &mut World, mut primary: Host, mut backup: Host) -> anyhow::Result<(Host, Host, Round)> {
    let died = primary.name().to_owned();
    let death = Instant::now();
    primary.kill();
    primary.reap();
    drop(primary);
    while backup.status().await.is_none_or(|status| !status.is_live()) {
        if let Some(end) = backup.ended()? {
            bail!("The survivor ended ({end}){}", backup.last_words());
        }
        if death.elapsed() > TAKEOVER_MAX {
            bail!("Nobody took over{}", backup.last_words());
        }
        tokio::time::sleep(LOOK).await;
    }
    let takeover_ms = tenths(death.elapsed());
    let mut spare = world.start_spare(&died)?;
    world.wait_until_up(&mut backup, Some(&mut spare)).await?;
    let unprotected_ms = tenths(death.elapsed());
    let status = backup.status().await.context("The survivor does not answer")?;
    let copy = status.copy.context("The survivor says nothing of its copy")?;
    let disk = copy.disk.as_ref();
    let round = Round {
        died,
        takeover_ms,
        unprotected_ms,
        stop_ms: (copy.stop_ms.unwrap_or_default() * 10.0).round() / 10.0,
        copied_bytes: copy.bytes,
        copy_rounds: copy.rounds,
        disk_whole: disk.map(|disk| disk.whole),
        disk_bytes: disk.map(|disk| disk.bytes),
        term: status.term,
    };
    Ok((backup, spare, round))
}

/// Stops the pair, boots the guest from the image of each host and nothing else, and reads every key back.
async fn boot_each(
    world: &mut World,
    mut primary: Host,
    mut backup: Host,
    judge: &Judge,
    progress: &Progress,
) -> anyhow::Result<Losses> {
    // The backup of a primary that was asked to stop takes over; then it is asked, too.
    stop(&mut primary).await?;
    let deadline = Instant::now() + STOP_MAX;
    while backup.status().await.is_none_or(|status| status.role != "alone") {
        if Instant::now() > deadline {
            bail!("Nobody took over{}", backup.last_words());
        }
        tokio::time::sleep(LOOK).await;
    }
    stop(&mut backup).await?;
    drop((primary, backup));
    let mut sum = Losses::default();
    for node in NODES {
        progress.event(&format!(
            "the guest is booted from the image of host {node} alone"
        ));
        let mut again = world.start_apart(node)?;
        world.wait_until_up(&mut again, None).await?;
        let losses = judge.read_back(GUEST).await?;
        sum.lost += losses.lost;
        sum.wrong += losses.wrong;
    }
    Ok(sum)
}

async fn stop(host: &mut Host) -> anyhow::Result<()> {
    host.terminate();
    let deadline = Instant::now() + STOP_MAX;
    while host.ended()?.is_none() {
        if Instant::now() > deadline {
            bail!("Host {} does not stop{}", host.name(), host.last_words());
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

impl Report {
    /// Says it, and what the process should say with its exit status.
    pub(crate) fn print(&self, json: bool) -> anyhow::Result<ExitCode> {
        if json {
            println!("{}", serde_json::to_string(self)?);
        } else {
            println!("{}", self.table());
            for story in &self.stories {
                println!("  {story}");
            }
            println!(
                "{}",
                if self.ok {
                    "No client noticed."
                } else {
                    "FAILED: clients noticed."
                }
            );
        }
        Ok(if self.ok {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_FULL_CONDENSED);
        table.add_row(["deaths survived", &self.rounds.len().to_string()]);
        table.add_row(["replies received", &self.acked_ops.to_string()]);
        table.add_row(["acknowledged writes lost", &self.lost_ops.to_string()]);
        table.add_row(["wrong replies", &self.wrong_replies.to_string()]);
        table.add_row([
            "broken connections",
            &format!("{} of {}", self.broken_connections, self.clients),
        ]);
        table.add_row(["longest gap any client saw", &format!("{} ms", self.outage_ms)]);
        table.add_row(["longest standstill for a copy", &format!("{} ms", self.stop_ms)]);
        if let (Some(lost), Some(wrong)) = (self.lost_after_boot, self.wrong_after_boot) {
            let words = format!("{lost} lost, {wrong} wrong");
            table.add_row(["booted from each host's own image", &words]);
        }
        table.add_row(["longest time unprotected", &format!("{} ms", self.unprotected_ms)]);
        table
    }
}

fn tenths(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}

/// How long the pair is left in peace before the next death.
const CALM_MS: std::ops::RangeInclusive<u64> = 300..=900;
const TAKEOVER_MAX: Duration = Duration::from_secs(5);
/// How long a host may take to stop, or to take over from one that did.
const STOP_MAX: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(4);
