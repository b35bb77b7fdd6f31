//! What can happen to a pair in a campaign. Every fault lasts for a while and is lifted again: a dead host stays dead, and
//! is started again as a spare when the pair heals.

use std::fmt;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::pair::{Pair, Part};
use super::small_disk;
use crate::args::Arbiter;
use crate::world::World;
use crate::world::config::{NODES, tap};

/// One fault, with everything that was left to chance.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// SIGKILL to every process of a host.
    Kill(Part),
    /// SIGSTOP to every process of a host, and SIGCONT later: sometimes before anybody noticed.
    Pause(Part, Duration),
    /// Nothing passes between the hosts, one way or both.
    Cut { to: bool, from: bool, time: Duration },
    /// Packets between the hosts are late, overtake each other, and some are lost.
    Weather {
        delay: Duration,
        loss_per_mille: u32,
        time: Duration,
    },
    /// The cable between the live host and the outside is pulled.
    Unplugged(Duration),
    /// SIGKILL to one device process.
    Device(Part, &'static str),
    /// The disk process gets only every fifth millisecond.
    SlowDisk(Part, Duration),
    /// The arbiter service dies and comes back; meanwhile the primary's host is killed.
    Arbiter(Duration),
    /// There is no room on the disk any more; then the primary's host is killed.
    FullDisk,
}

impl Fault {
    /// Picks one. After a full disk the guest writes no more, so that is for the last fault of a life.
    pub(super) fn pick(dice: &mut SmallRng, arbiter: Arbiter, may_end_writing: bool) -> Self {
        if may_end_writing && dice.random_ratio(1, 3) {
            return Self::FullDisk;
        }
        let part = if dice.random() {
            Part::Primary
        } else {
            Part::Backup
        };
        let millis = |dice: &mut SmallRng, range| Duration::from_millis(dice.random_range(range));
        match dice.random_range(0..10) {
            0 | 1 => Self::Kill(part),
            2 => Self::Pause(part, millis(dice, 5..=100)),
            3 => Self::Pause(part, millis(dice, 100..=1500)),
            4 => {
                let (to, from) = [(true, true), (true, false), (false, true)][dice.random_range(0..3)];
                let time = millis(dice, 10..=900);
                Self::Cut { to, from, time }
            }
            5 => Self::Weather {
                delay: Duration::from_micros(dice.random_range(200..=20_000)),
                loss_per_mille: dice.random_range(0..=50),
                time: millis(dice, 200..=1000),
            },
            6 => Self::Unplugged(millis(dice, 20..=400)),
            7 => Self::Device(part, if dice.random() { "net" } else { "blk" }),
            8 => Self::SlowDisk(part, millis(dice, 100..=600)),
            _ if arbiter == Arbiter::Quic => Self::Arbiter(millis(dice, 50..=800)),
            _ => Self::Kill(part),
        }
    }

    /// Which sort it is. Reports count by it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Kill(Part::Primary) => "kill the primary",
            Self::Kill(Part::Backup) => "kill the backup",
            Self::Pause(Part::Primary, _) => "pause the primary",
            Self::Pause(Part::Backup, _) => "pause the backup",
            Self::Cut { to, from, .. } if *to && *from => "cut the wire",
            Self::Cut { .. } => "cut the wire one way",
            Self::Weather { .. } => "delay and loss",
            Self::Unplugged(_) => "unplug the primary",
            Self::Device(..) => "kill a device process",
            Self::SlowDisk(..) => "slow down a disk",
            Self::Arbiter(_) => "kill the arbiter and the primary",
            Self::FullDisk => "fill the disk and kill the primary",
        }
    }

    /// Whether a server may refuse writes from now on.
    pub(super) fn ends_writing(&self) -> bool {
        matches!(self, Self::FullDisk)
    }

    /// Lets it happen, for as long as it lasts.
    pub(super) async fn strike(&self, world: &mut World, pair: &mut Pair) -> anyhow::Result<()> {
        match self {
            Self::Kill(part) => pair.host(*part).kill(),
            Self::Pause(part, time) => {
                pair.host(*part).stop();
                tokio::time::sleep(*time).await;
            }
            Self::Cut { to, from, time } => {
                relay(world)?.cut_ways(*to, *from);
                tokio::time::sleep(*time).await;
            }
            Self::Weather {
                delay,
                loss_per_mille,
                time,
            } => {
                relay(world)?.worsen(*delay, *loss_per_mille);
                tokio::time::sleep(*time).await;
            }
            Self::Unplugged(time) => {
                let tap = tap(pair.host(Part::Primary).name());
                world.network().pull(&tap).await?;
                tokio::time::sleep(*time).await;
            }
            Self::Device(part, kind) => signal(pair.device(*part, kind).await?, Signal::SIGKILL),
            Self::SlowDisk(part, time) => slow_down(pair.device(*part, "blk").await?, *time).await,
            Self::Arbiter(time) => {
                world.kill_arbiter();
                pair.host(Part::Primary).kill();
                tokio::time::sleep(*time).await;
            }
            Self::FullDisk => {
                small_disk::fill(world.dir())?;
                tokio::time::sleep(UNTIL_NOTICED).await;
                pair.host(Part::Primary).kill();
            }
        }
        Ok(())
    }

    /// Lets it be over; what it did stays done.
    pub(super) async fn lift(&self, world: &mut World, pair: &mut Pair) -> anyhow::Result<()> {
        match self {
            Self::Pause(part, _) => pair.host(*part).resume(),
            Self::Cut { .. } | Self::Weather { .. } => relay(world)?.mend(),
            Self::Arbiter(_) => world.restart_arbiter().await?,
            Self::FullDisk => small_disk::free(world.dir())?,
            Self::Device(part, _) => pair.await_end(*part).await?,
            // The cable is plugged in again when the pair heals.
            Self::Kill(_) | Self::Unplugged(_) | Self::SlowDisk(..) => {}
        }
        Ok(())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |part: &Part| match part {
            Part::Primary => "the primary",
            Part::Backup => "the backup",
        };
        match self {
            Self::Kill(part) => write!(f, "kill {}", name(part)),
            Self::Pause(part, time) => write!(f, "pause {} for {time:?}", name(part)),
            Self::Cut { to, from, time } => {
                let host = NODES[0];
                match (to, from) {
                    (true, true) => write!(f, "cut the wire for {time:?}"),
                    (true, _) => write!(f, "cut the wire to {host} for {time:?}"),
                    _ => write!(f, "cut the wire from {host} for {time:?}"),
                }
            }
            Self::Weather {
                delay,
                loss_per_mille,
                time,
            } => write!(
                f,
                "delay of {delay:?} and loss of {loss_per_mille} in 1000 for {time:?}"
            ),
            Self::Unplugged(time) => write!(f, "unplug the primary for {time:?}"),
            Self::Device(part, kind) => write!(f, "kill the {kind} process of {}", name(part)),
            Self::SlowDisk(part, time) => write!(f, "slow down the disk of {} for {time:?}", name(part)),
            Self::Arbiter(time) => write!(f, "kill the arbiter for {time:?}, and the primary"),
            Self::FullDisk => f.write_str("fill the disk, and kill the primary"),
        }
    }
}

fn relay(world: &World) -> anyhow::Result<&crate::world::relay::Relay> {
    world.relay().context("A campaign's wire goes through a relay")
}

/// Lets a process run for a fifth of `time` only.
async fn slow_down(process: i32, time: Duration) {
    let mut left = time;
    while !left.is_zero() {
        signal(process, Signal::SIGSTOP);
        tokio::time::sleep(SLOW_STOP).await;
        signal(process, Signal::SIGCONT);
        tokio::time::sleep(SLOW_GO).await;
        left = left.saturating_sub(SLOW_STOP + SLOW_GO);
    }
}

fn signal(process: i32, signal: Signal) {
    // It may be gone already, with its host.
    let _ = kill(Pid::from_raw(process), signal);
}

const SLOW_STOP: Duration = Duration::from_millis(20);
const SLOW_GO: Duration = Duration::from_millis(5);
/// How long the guest writes to a full disk before its host dies, too.
const UNTIL_NOTICED: Duration = Duration::from_millis(100);
