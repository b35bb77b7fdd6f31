//! The story of the demo, from top to bottom: two hosts start, clients ask, one host dies (or stalls, or the wire
//! between them breaks), clients go on asking, and in the end everything is read back and judged.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::args::DemoArgs;
use crate::client::check::Losses;
use crate::client::load::{Judge, Load, Tally};
use crate::clock::boot_ns;
use crate::fault::{Fault, PAUSE};
use crate::progress::Progress;
use crate::samples::Samples;
use crate::world::config::{GUEST, NODES};
use crate::world::hosts::Host;
use crate::world::namespace::Network;
use crate::world::status::Status;
use crate::world::{Wish, World};

/// Everything that was seen, not judged yet.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) fault: Fault,
    pub(crate) tally: Tally,
    pub(crate) losses: Losses,
    /// The same, of the guest that was booted anew from the survivor's disk, if that was asked for.
    pub(crate) booted_again: Option<Losses>,
    /// Replies before the fault, and how long that lasted.
    pub(crate) before: (u64, Duration),
    /// Replies after the longest gap, and how long that lasted.
    pub(crate) after: (u64, Duration),
    /// When the fault came, CLOCK_BOOTTIME in ns.
    pub(crate) fault_boot_ns: u64,
    /// Records of the log when the clients started.
    pub(crate) records_at_start: u64,
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
    let fault = Fault::of(args);
    let mut world = World::new(&wish(args, fault), Network::new().await?).await?;
    progress.event("starting backup b and primary a");
    let mut b = world.start(NODES[1], "backup", &[])?;
    let mut a = match fault {
        Fault::KillAtRecord(n) => world.start(NODES[0], "primary", &["--die-at-record", &n.to_string()])?,
        _ => world.start(NODES[0], "primary", &[])?,
    };
    world.wait_until_up(&mut a, Some(&mut b)).await?;
    progress.event("the guest is up and protected");
    let records_at_start = a.status().await.unwrap_or_default().log_end;

    let load = Load::start(GUEST, args.clients, args.seed).await?;
    progress.event(&format!("{} clients ask (seed {})", args.clients, args.seed));
    let mut scene = Scene {
        load,
        start: Instant::now(),
        progress,
        samples: Samples::default(),
    };
    let old = scene.until_the_fault(args, fault, &mut a).await?;
    let before = (scene.load.tally().acked, scene.start.elapsed());
    let fault_boot_ns = boot_ns();
    fault.strike(&world, &mut a, &mut b);
    scene.progress.event(fault.told());
    let leaked = scene.follow(args, fault, &mut world, &mut a, &b).await?;

    let samples = scene.samples;
    let (judge, losses) = finish(scene.load, scene.progress).await?;
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
    let after = samples.since(judge.tally.gap_end, ended);
    let booted_again = match &survivor {
        Some((name, _)) if args.boot_again => {
            let (survivor, other) = if name == a.name() { (a, b) } else { (b, a) };
            Some(boot_again(&mut world, survivor, other, &judge, scene.progress).await?)
        }
        _ => None,
    };
    Ok(Seen {
        fault,
        tally: judge.tally,
        losses,
        booted_again,
        before,
        after,
        fault_boot_ns,
        records_at_start,
        old,
        survivor,
        live_hosts,
        other,
        leaked,
    })
}

fn wish(args: &DemoArgs, fault: Fault) -> Wish {
    Wish {
        arbiter: args.arbiter,
        disk: args.disk,
        vcpus: args.vcpus,
        relay: fault == Fault::Cut,
        keep: args.keep.clone(),
        verbose: args.verbose,
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

    /// From the start of the clients to the fault. Returns the primary's last status before it.
    async fn until_the_fault(
        &mut self,
        args: &DemoArgs,
        fault: Fault,
        a: &mut Host,
    ) -> anyhow::Result<Status> {
        if let Fault::KillAtRecord(record) = fault {
            return self.watch_until_dead(a, record).await;
        }
        self.watch(&[a], Fault::after(args)).await;
        let old = a.status().await.unwrap_or_default();
        if let Some(end) = a.ended()? {
            bail!("The primary ended by itself ({end}){}", a.last_words());
        }
        Ok(old)
    }

    /// The primary kills itself; returns its last words to us.
    async fn watch_until_dead(&mut self, a: &mut Host, record: u64) -> anyhow::Result<Status> {
        let mut old = Status::default();
        while a.ended()?.is_none() {
            if self.start.elapsed() > RECORD_TIME {
                bail!("The primary came to record {} only, not to {record}", old.log_end);
            }
            self.watch(&[a], self.start.elapsed() + LOOK_INTERVAL).await;
            old = a.status().await.unwrap_or(old);
        }
        Ok(old)
    }

    /// A short story: until the survivor is live, and a little longer.
    async fn follow_shortly(&mut self, survivor: &Host, more: Duration) {
        let deadline = self.start.elapsed() + SETTLE_TIME;
        while self.start.elapsed() < deadline
            && survivor
                .status()
                .await
                .is_none_or(|status| status.role != "alone")
        {
            self.watch(&[survivor], self.start.elapsed() + LOOK_INTERVAL)
                .await;
        }
        self.watch(&[survivor], self.start.elapsed() + more).await;
    }

    /// From the fault to the end of the story. Returns how many replies came while nobody could have had a term.
    async fn follow(
        &mut self,
        args: &DemoArgs,
        fault: Fault,
        world: &mut World,
        a: &mut Host,
        b: &Host,
    ) -> anyhow::Result<u64> {
        if let Some(more) = args.end_after.map(Duration::from_millis) {
            let survivor = if fault == Fault::KillBackup { &*a } else { b };
            self.follow_shortly(survivor, more).await;
            return Ok(0);
        }
        let fault_after = Fault::after(args);
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
        self.samples.push(now, self.load.tally().acked);
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

async fn finish(load: Load, progress: &Progress) -> anyhow::Result<(Judge, Losses)> {
    progress.event("clients stop; every key is read back over fresh connections");
    load.finish().await
}

/// Stops the survivor, boots the guest from that host's disk and nothing else, and reads every key back.
async fn boot_again(
    world: &mut World,
    mut survivor: Host,
    other: Host,
    judge: &Judge,
    progress: &Progress,
) -> anyhow::Result<Losses> {
    let (name, lost) = (survivor.name().to_owned(), other.name().to_owned());
    drop(other);
    survivor.terminate();
    let deadline = Instant::now() + SETTLE_TIME;
    while survivor.ended()?.is_none() {
        if Instant::now() > deadline {
            bail!("Host {name} does not stop{}", survivor.last_words());
        }
        tokio::time::sleep(SAMPLE_INTERVAL).await;
    }
    world.lose_disk_of(&lost)?;
    progress.event(&format!("host {name} stopped; its disk is booted anew, alone"));
    let mut again = world.start(&name, "primary", &["--alone"])?;
    world.wait_until_up(&mut again, None).await?;
    let losses = judge.read_back(GUEST).await?;
    progress.event("every key was read back from it");
    Ok(losses)
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

/// The story goes on at least so long after its last turn.
const AFTER_MIN: Duration = Duration::from_millis(1500);
/// After a cut, the time in which a reply may still arrive: the lease runs on, and packets are under way.
const LEASE_AND_WIRE: Duration = Duration::from_millis(250);
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);
/// How often to look whether a host has died or come to live, where that is what is waited for.
const LOOK_INTERVAL: Duration = Duration::from_millis(4);
/// How long the primary may take to come to the record at which it dies.
const RECORD_TIME: Duration = Duration::from_secs(15);
const SETTLE_TIME: Duration = Duration::from_secs(3);
