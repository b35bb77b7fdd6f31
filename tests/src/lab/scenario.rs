//! The lab's stories, each a file: what happens, what was seen, and what must have been so.

pub mod failover;
pub mod idle;
pub mod replay;
pub mod wan;

use std::time::Duration;

use anyhow::Context;
use lockstep_demo::outside::{Losses, Outside, Seen};

use super::config::TIMING;
use super::guest_image::{self, REDIS};
use super::packages::tool;
use super::report::Report;
use super::wires::{GUEST, Node};
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
}

impl Order {
    /// A report that says first what was ordered.
    fn report(&self, scenario: &str) -> Report {
        let mut report = Report::default();
        report.figure("scenario", "Scenario", scenario);
        report.figure("guest", "Guest", self.setting.guest.name());
        report.figure("hosts", "Hosts", "emulated CPU with SVM, real KVM");
        report.figure("heartbeat_ms", "Heartbeat, ms", TIMING.heartbeat_ms);
        report.figure("timeout_ms", "Time-out, ms", TIMING.timeout_ms);
        report.figure("lease_ms", "Lease, ms", TIMING.lease_ms);
        report
    }
}

/// Waits until the clients got this many replies.
fn until_acked(outside: &Outside, replies: u64) -> anyhow::Result<()> {
    let what = format!("{replies} replies");
    eventually(&what, REPLIES_TIME, || {
        Ok((outside.seen().acked >= replies).then_some(()))
    })
}

/// What a host's death did.
#[derive(Debug)]
struct Death {
    /// Replies until then.
    acked_before: u64,
    /// The longest wait until then.
    gap_before: Duration,
    /// All that the clients saw.
    seen: Seen,
    /// What was missing when everything was read back from the guest.
    losses: Losses,
    /// What the survivor said of its takeover.
    takeover: serde_json::Value,
    /// What was missing on the disk, if the guest keeps anything there.
    on_disk: Option<OnDisk>,
}

/// What the guest's disk holds after both hosts lost their power.
#[derive(Clone, Copy, Debug, Default)]
struct OnDisk {
    fsck_errors: u64,
    losses: Losses,
}

/// Lets clients talk to a protected guest, cuts the primary's power after `delay`, and then the survivor's.
fn cut_power(world: &mut World, order: &Order, seed: u64, delay: Duration) -> anyhow::Result<Death> {
    let outside = Outside::start(GUEST, order.clients, seed)?;
    if let Err(error) = until_acked(&outside, u64::from(order.clients)) {
        outside.stop().map(drop)?;
        return Err(error);
    }
    // The moment of death is the scenario's to choose, so this waits for a time and not for an event.
    std::thread::sleep(delay);
    let before = outside.seen();
    world.host_mut(Node::A).kill();
    let goes_on = until_acked(&outside, before.acked + u64::from(order.clients) * MORE_REPLIES);
    let memory = outside.stop()?;
    goes_on.with_context(|| {
        format!(
            "The guest did not go on: {:?}. {}",
            memory.seen().stories,
            world.last_words()
        )
    })?;
    let losses = memory.read_back(GUEST)?;
    let takeover = world.status(Node::B)?["takeover"].clone();
    world.host_mut(Node::B).kill();
    let on_disk = match order.setting.guest {
        super::config::Guest::Micro => None,
        super::config::Guest::Debian => Some(look_at_disk(world, &memory)?),
    };
    Ok(Death {
        acked_before: before.acked,
        gap_before: before.longest_gap,
        seen: memory.seen(),
        losses,
        takeover,
        on_disk,
    })
}

/// Checks the file system, and starts a redis on what the guest's left there.
fn look_at_disk(world: &World, memory: &lockstep_demo::outside::Memory) -> anyhow::Result<OnDisk> {
    let fsck_errors = guest_image::fsck_errors(world.disk())?;
    guest_image::extract_data(world.disk(), world.folder())?;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 6379));
    let mut redis = std::process::Command::new(tool("redis-server")?);
    redis
        .args(REDIS)
        .args(["--bind", "127.0.0.1", "--port", "6379", "--dir"]);
    redis.arg(world.folder().join(guest_image::DATA));
    redis.stdout(std::fs::File::create(world.folder().join("redis.log"))?);
    let mut redis = Process::start(&mut redis)?;
    eventually("redis to load what the guest left", REPLIES_TIME, || {
        redis.check()?;
        Ok(lockstep_demo::outside::answers(address)?.then_some(()))
    })?;
    Ok(OnDisk {
        fsck_errors,
        losses: memory.read_back(address)?,
    })
}

/// For each connection, as many replies as it can have had in flight, and as many again.
const MORE_REPLIES: u64 = 32;
const REPLIES_TIME: Duration = Duration::from_secs(60);
