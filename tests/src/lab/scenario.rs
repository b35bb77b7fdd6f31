//! The lab's stories, each a file: what happens, what was seen, and what must have been so.

pub mod cut;
pub mod failover;
pub mod idle;
pub mod postgres;
pub mod power;
pub mod readme;
pub mod replay;
pub mod rounds;
pub mod wan;

use std::fs::File;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use lockstep_demo::outside::{self, Losses, Memory, Outside, Seen};
use serde_json::Value;

use super::config::{Guest, TIMING};
use super::guest_image::{self, REDIS};
use super::packages::tool;
use super::rdtsc::Counter;
use super::report::Report;
use super::wires::{GUEST, NODES, Node};
use super::world::{Setting, World};
use crate::qemu::processes::{Process, eventually};

/// What a scenario is told.
#[derive(Debug)]
pub struct Order {
    /// Where it plays.
    pub setting: Setting,
    /// How many connections the clients have.
    pub clients: u16,
    /// What they do, and when things happen.
    pub seed: u64,
    /// How often the story is told.
    pub runs: u32,
    /// What the pair's wire is like where it is bad, each way, in words of netem.
    pub netem: String,
}

impl Order {
    /// A report that says first what was ordered.
    fn report(&self, scenario: &str) -> Report {
        let mut report = Report::default();
        report.figure("scenario", "Scenario", scenario);
        report.figure("guest", "Guest", self.setting.guest.name());
        report.figure("vcpus", "vCPUs", self.setting.vcpus);
        report.figure("disk", "Disk", self.setting.disks.name());
        report.figure("hosts", "Hosts", "emulated CPU with SVM, real KVM");
        report.figure("heartbeat_ms", "Heartbeat, ms", TIMING.heartbeat_ms);
        report.figure("timeout_ms", "Time-out, ms", TIMING.timeout_ms);
        report.figure("lease_ms", "Lease, ms", TIMING.lease_ms);
        report
    }
}

impl Order {
    /// The guest's kernel has started all vCPUs that were ordered.
    fn check_vcpus(&self, world: &World) -> anyhow::Result<()> {
        if self.setting.guest == Guest::Micro {
            // It never starts another one.
            return Ok(());
        }
        let said = world.host(Node::A).read("guest");
        let wanted = format!("LOCKSTEP cpus {}", self.setting.vcpus);
        ensure!(
            said.lines().any(|line| line.trim_end().ends_with(&wanted)),
            "The guest does not say {wanted:?}: {said}"
        );
        Ok(())
    }
}

/// Waits until the clients got this many replies.
fn until_acked(outside: &Outside, replies: u64) -> anyhow::Result<()> {
    let what = format!("{replies} replies");
    eventually(&what, REPLIES_TIME, || {
        Ok((outside.seen().acked >= replies).then_some(()))
    })
}

/// What a fault did.
#[derive(Debug)]
struct Fault {
    /// Replies until then.
    acked_before: u64,
    /// The longest wait until then.
    gap_before: Duration,
    /// All that the clients saw.
    seen: Seen,
    /// What was missing when everything was read back from the guest.
    losses: Losses,
    /// Who lived in the end.
    survivor: Node,
    /// What it said of its takeover.
    takeover: Value,
    /// The longest that an input waited for the guest to open a window there.
    late: Duration,
    /// How many deltas host a had made by then.
    deltas: u64,
    /// What was missing on its disk, if the guest keeps anything there.
    on_disk: Option<OnDisk>,
    /// How often a program in its user space read the counter, before and after.
    user_rdtsc: u64,
}

/// What the guest's disk holds after both hosts lost their power.
#[derive(Clone, Debug, Default)]
struct OnDisk {
    fsck: Vec<String>,
    losses: Losses,
}

/// Lets clients talk to a protected guest, does something to its hosts after `delay`, and in the end cuts the power of
/// whoever is left.
fn survive(
    world: &mut World,
    order: &Order,
    seed: u64,
    delay: Duration,
    fault: impl FnOnce(&mut World) -> anyhow::Result<()>,
) -> anyhow::Result<Fault> {
    if order.setting.guest == Guest::Postgres {
        return postgres::survive(world, order, seed, delay, fault);
    }
    let mut counter = match order.setting.guest {
        Guest::Debian => Some(Counter::connect()?),
        Guest::Micro | Guest::Postgres => None,
    };
    let mut count = || counter.as_mut().map_or(Ok(()), |counter| counter.ask(COUNTS));
    let outside = Outside::start(GUEST, order.clients, seed)?;
    let talked = count().and_then(|()| until_acked(&outside, u64::from(order.clients)));
    // The moment is the scenario's to choose, so this waits for a time and not for an event.
    std::thread::sleep(delay);
    let before = outside.seen();
    let deltas = deltas(world)?;
    let goes_on = talked
        .and_then(|()| fault(world))
        .and_then(|()| until_acked(&outside, before.acked + u64::from(order.clients) * MORE_REPLIES))
        .and_then(|()| count());
    let end = conclude(world, order, outside, goes_on)?;
    Ok(Fault {
        acked_before: before.acked,
        gap_before: before.longest_gap,
        seen: end.seen,
        losses: end.losses,
        survivor: end.survivor,
        takeover: end.status["takeover"].clone(),
        late: late(&end.status),
        deltas,
        on_disk: end.on_disk,
        user_rdtsc: counter.map_or(0, |counter| counter.asked()),
    })
}

/// What is known when the clients have stopped and every host is without power.
struct End {
    seen: Seen,
    losses: Losses,
    survivor: Node,
    /// The survivor's last one.
    status: Value,
    on_disk: Option<OnDisk>,
}

/// Stops the clients of a guest that `goes_on` unless something failed, reads everything back from it, cuts the power of
/// whoever is left, and looks at the disks.
fn conclude(
    world: &mut World,
    order: &Order,
    outside: Outside,
    goes_on: anyhow::Result<()>,
) -> anyhow::Result<End> {
    let memory = outside.stop()?;
    goes_on.with_context(|| {
        let stories = memory.seen().stories;
        format!("The guest did not go on: {stories:?}. {}", world.last_words())
    })?;
    let losses = memory.read_back(GUEST)?;
    let survivor = world.live()?;
    let status = world.status(survivor)?;
    for node in NODES {
        world.host_mut(node).kill();
    }
    let on_disk = match order.setting.guest {
        Guest::Micro => None,
        Guest::Debian | Guest::Postgres => Some(look_at_disks(world, survivor, &memory)?),
    };
    Ok(End {
        seen: memory.seen(),
        losses,
        survivor,
        status,
        on_disk,
    })
}

/// How many deltas host a has made.
fn deltas(world: &World) -> anyhow::Result<u64> {
    let status = world.status(Node::A)?;
    status["deltas"].as_u64().context("A status counts deltas")
}

/// What a status says of inputs that waited.
fn late(status: &Value) -> Duration {
    Duration::from_micros(status["longest_wait_us"].as_u64().unwrap_or_default())
}

/// What e2fsck says of every disk that there is.
fn fsck(world: &World) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut disks = NODES.map(|node| world.disk(node)).to_vec();
    disks.dedup();
    for disk in &disks {
        found.extend(guest_image::fsck(disk)?);
    }
    Ok(found)
}

/// Checks the file systems, and starts a redis on what the guest left on the survivor's.
fn look_at_disks(world: &World, survivor: Node, memory: &Memory) -> anyhow::Result<OnDisk> {
    let fsck = fsck(world)?;
    guest_image::extract_data(&world.disk(survivor), world.folder())?;
    let address = SocketAddr::from(([127, 0, 0, 1], 6379));
    let mut redis = Command::new(tool("redis-server")?);
    redis
        .args(REDIS)
        .args(["--bind", "127.0.0.1", "--port", "6379", "--dir"])
        .arg(world.folder().join(guest_image::DATA))
        .stdout(File::create(world.folder().join("redis.log"))?);
    let mut redis = Process::start(&mut redis)?;
    eventually("redis to load what the guest left", REPLIES_TIME, || {
        redis.check()?;
        Ok(outside::answers(address)?.then_some(()))
    })?;
    Ok(OnDisk {
        fsck,
        losses: memory.read_back(address)?,
    })
}

/// For each connection, as many replies as it can have had in flight, and as many again.
const MORE_REPLIES: u64 = 32;
/// How often the counter is read before a fault, and how often after it.
const COUNTS: u64 = 10;
const REPLIES_TIME: Duration = Duration::from_secs(120);
