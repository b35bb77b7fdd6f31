//! The story of the demo, from top to bottom: two hosts start, clients ask, one host dies (or stalls, or the wire
//! between them breaks), clients go on asking, and in the end everything is read back and judged.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::args::DemoArgs;
use crate::client::check::Losses;
use crate::client::load::{Load, Tally};
use crate::clock::boot_ns;
use crate::progress::Progress;
use crate::world::config::{GUEST, NODES};
use crate::world::hosts::Host;
use crate::world::namespace::Network;
use crate::world::status::Status;
use crate::world::{Wish, World};

/// What happens to the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL to every process of the primary's host.
    Kill,
    /// SIGSTOP to all of them, and SIGCONT after [`PAUSE`].
    Pause,
    /// The wire between the hosts is cut, both ways.
    Cut,
}

/// Everything that was seen, not judged yet.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) fault: Fault,
    pub(crate) tally: Tally,
    pub(crate) losses: Losses,
    /// Replies before the fault, and how long that lasted.
    pub(crate) before: (u64, Duration),
    /// Replies after the longest gap, and how long that lasted.
    pub(crate) after: (u64, Duration),
    /// When the fault came, CLOCK_BOOTTIME in ns.
    pub(crate) fault_boot_ns: u64,
    /// The old primary's last status before the fault.
    pub(crate) old: Status,
    /// Which host is live in the end, if any, and what it says.
    pub(crate) survivor: Option<(String, Status)>,
    /// How many hosts are live in the end: 1 is right.
    pub(crate) live_hosts: usize,
    /// How the host that is not live ended, or what it does.
    pub(crate) other: Option<String>,
    /// Replies that came although link and arbiter were both away.
    pub(crate) leaked: u64,
}

/// How the pair stands in the end.
struct Settled {
    survivor: Option<(String, Status)>,
    live_hosts: usize,
    other: Option<String>,
}

/// Plays the whole story. Must run in a `LocalSet`, after the namespace was entered.
pub(crate) async fn tell(args: &DemoArgs, progress: &mut Progress) -> anyhow::Result<Seen> {
    let fault = fault(args);
    let wish = Wish {
        arbiter: args.arbiter,
        relay: fault == Fault::Cut,
        keep: args.keep.clone(),
        verbose: args.verbose,
    };
    let network = Network::new().await?;
    let mut world = World::new(&wish, network).await?;
    progress.event("starting backup b and primary a");
    let mut b = world.start(NODES[1], "backup", false)?;
    let mut a = world.start(NODES[0], "primary", false)?;
    world.wait_until_up(&mut a, Some(&mut b)).await?;
    progress.event("the guest is up and protected");

    let load = Load::start(GUEST, args.clients, args.seed).await?;
    progress.event(&format!("{} clients ask (seed {})", args.clients, args.seed));
    let mut scene = Scene {
        load,
        start: Instant::now(),
        progress,
        samples: Samples::default(),
    };
    let fault_after = fault_after(args);
    scene.watch(&[&a], fault_after).await;

    let old = a.status().await.unwrap_or_default();
    if let Some(end) = a.ended()? {
        bail!("The primary ended by itself ({end}){}", a.last_words());
    }
    let before = (scene.load.tally().acked, scene.start.elapsed());
    let fault_boot_ns = boot_ns();
    strike(fault, &world, &mut a);
    scene.progress.event(fault.told());
    let leaked = scene
        .follow(args, fault, &mut world, &mut a, &b, fault_after)
        .await?;

    let samples = scene.samples;
    let (tally, losses) = finish(scene.load, scene.progress).await?;
    let ended = samples.last();
    let Settled {
        survivor,
        live_hosts,
        other,
    } = settle(&mut a, &mut b).await?;
    if survivor.is_none() {
        scene
            .progress
            .event(&format!("no host is live{}{}", a.last_words(), b.last_words()));
    }
    let after = samples.since(tally.gap_end, ended);
    Ok(Seen {
        fault,
        tally,
        losses,
        before,
        after,
        fault_boot_ns,
        old,
        survivor,
        live_hosts,
        other,
        leaked,
    })
}

fn fault(args: &DemoArgs) -> Fault {
    match (args.pause, args.cut) {
        (true, _) => Fault::Pause,
        (_, true) => Fault::Cut,
        _ => Fault::Kill,
    }
}

/// When the fault comes: told, or a moment that the seed picks.
fn fault_after(args: &DemoArgs) -> Duration {
    let jitter = SmallRng::seed_from_u64(args.seed).random_range(0..=JITTER_MS);
    Duration::from_millis(args.kill_after.unwrap_or(FAULT_AFTER_MS + jitter))
}

fn strike(fault: Fault, world: &World, primary: &mut Host) {
    match fault {
        Fault::Kill => primary.kill(),
        Fault::Pause => primary.stop(),
        Fault::Cut => world.cut(),
    }
}

impl Fault {
    fn told(self) -> &'static str {
        match self {
            Self::Kill => "SIGKILL to every process of host a, requests in flight",
            Self::Pause => "SIGSTOP to every process of host a, requests in flight",
            Self::Cut => "the wire between a and b is cut, requests in flight",
        }
    }
}

/// The clients at work, and what is noted of them.
struct Scene<'a> {
    load: Load,
    start: Instant,
    progress: &'a mut Progress,
    samples: Samples,
}

impl Scene<'_> {
    /// Lets the clients work until `until` after their start and shows how the live one of `hosts` stands, or the first.
    async fn watch(&mut self, hosts: &[&Host], until: Duration) {
        while self.start.elapsed() < until {
            let left = until.saturating_sub(self.start.elapsed());
            tokio::time::sleep(left.min(SAMPLE_INTERVAL)).await;
            self.sample();
            if self.samples.is_round() {
                self.show(hosts).await;
            }
        }
    }

    /// From the fault to the end of the story. Returns how many replies came while nobody could have had a term.
    async fn follow(
        &mut self,
        args: &DemoArgs,
        fault: Fault,
        world: &mut World,
        a: &mut Host,
        b: &Host,
        fault_after: Duration,
    ) -> anyhow::Result<u64> {
        let end = Duration::from_secs(args.seconds).max(fault_after + AFTER_MIN);
        if fault == Fault::Pause {
            self.watch(&[b], fault_after + PAUSE).await;
            a.resume();
            self.progress.event("SIGCONT: host a is awake again");
            self.watch(&[b, a], end.max(fault_after + PAUSE + AFTER_MIN))
                .await;
            return Ok(0);
        }
        let mut leaked = 0;
        let mut quiet_until = fault_after;
        if let Some(away) = args.arbiter_away.map(Duration::from_millis) {
            world.stop_arbiter()?;
            self.progress.event("the arbiter is away");
            quiet_until += away;
            leaked = self
                .listen(&[b, a], fault_after + LEASE_AND_WIRE, quiet_until)
                .await;
            world.resume_arbiter();
            self.progress
                .event(&format!("the arbiter is back; {leaked} replies came without it"));
        }
        self.watch(&[b, a], end.max(quiet_until + AFTER_MIN)).await;
        Ok(leaked)
    }

    /// How many replies come between two moments after the start.
    async fn listen(&mut self, hosts: &[&Host], from: Duration, until: Duration) -> u64 {
        self.watch(hosts, from).await;
        let before = self.load.tally().acked;
        self.watch(hosts, until).await;
        self.load.tally().acked - before
    }

    fn sample(&mut self) {
        let now = Instant::now();
        self.samples.0.push((now, self.load.tally().acked));
    }

    async fn show(&mut self, hosts: &[&Host]) {
        let mut who = None;
        for host in hosts {
            let status = host.status().await;
            let live = status.as_ref().is_some_and(Status::is_live);
            if live || who.is_none() {
                who = Some(told(host, status.as_ref()));
            }
            if live {
                break;
            }
        }
        let acked = self.samples.last().map_or(0, |(_, acked)| acked);
        let rate = self.samples.rate();
        self.progress.now(&format!(
            "{acked} replies, {rate:.0} a second; {}",
            who.unwrap_or_default()
        ));
    }
}

fn told(host: &Host, status: Option<&Status>) -> String {
    match status {
        Some(status) => format!(
            "{} is {} in term {}",
            host.name(),
            status.role.replace('_', " "),
            status.term
        ),
        None => format!("{} does not answer", host.name()),
    }
}

async fn finish(load: Load, progress: &Progress) -> anyhow::Result<(Tally, Losses)> {
    progress.event("clients stop; every key is read back over fresh connections");
    load.finish().await
}

/// Waits until one host is live and the other has ended, as far as it ever comes to that.
async fn settle(a: &mut Host, b: &mut Host) -> anyhow::Result<Settled> {
    let deadline = Instant::now() + SETTLE_TIME;
    loop {
        let mut live = Vec::new();
        let mut other = None;
        let mut ended = false;
        for host in [&mut *a, &mut *b] {
            if let Some(end) = host.ended().context("Cannot look after a host")? {
                other = Some(format!("{} ended: {end}", host.name()));
                ended = true;
                continue;
            }
            match host.status().await {
                Some(status) if status.is_live() => live.push((host.name().to_owned(), status)),
                Some(status) => other = Some(format!("{} is {}", host.name(), status.role.replace('_', " "))),
                None => other = Some(format!("{} does not answer", host.name())),
            }
        }
        if (live.len() == 1 && ended) || Instant::now() > deadline {
            return Ok(Settled {
                live_hosts: live.len(),
                survivor: live.pop(),
                other,
            });
        }
        tokio::time::sleep(SAMPLE_INTERVAL).await;
    }
}

/// How many replies there were when.
#[derive(Clone, Debug, Default)]
struct Samples(Vec<(Instant, u64)>);

impl Samples {
    fn last(&self) -> Option<(Instant, u64)> {
        self.0.last().copied()
    }

    /// Whether it is time to look at a host, too.
    fn is_round(&self) -> bool {
        self.0.len().is_multiple_of(SAMPLES_A_ROUND)
    }

    /// Replies a second, lately.
    fn rate(&self) -> f64 {
        let lately = self.0.len().saturating_sub(SAMPLES_A_ROUND * 2);
        match (self.0.get(lately), self.0.last()) {
            (Some((from, before)), Some((to, after))) if to > from => {
                (after - before) as f64 / to.duration_since(*from).as_secs_f64()
            }
            _ => 0.0,
        }
    }

    /// Replies from the first sample at or after `since` to `end`, and how long that was.
    fn since(&self, since: Option<Instant>, end: Option<(Instant, u64)>) -> (u64, Duration) {
        let first = self
            .0
            .iter()
            .find(|(at, _)| since.is_none_or(|since| *at >= since));
        match (first, end) {
            (Some((from, before)), Some((to, after))) => (after - before, to.duration_since(*from)),
            _ => (0, Duration::ZERO),
        }
    }
}

/// How long a paused host sleeps.
const PAUSE: Duration = Duration::from_secs(3);
const FAULT_AFTER_MS: u64 = 2000;
const JITTER_MS: u64 = 500;
/// The story goes on at least so long after its last turn.
const AFTER_MIN: Duration = Duration::from_millis(1500);
/// After a cut, the time in which a reply may still arrive: the lease runs on, and packets are under way.
const LEASE_AND_WIRE: Duration = Duration::from_millis(250);
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);
const SAMPLES_A_ROUND: usize = 10;
const SETTLE_TIME: Duration = Duration::from_secs(3);
