//! The bench: the same guest alone and protected, in turns (A B A B), on this machine, over loopback QUIC. What is
//! compared was measured in one run, so a slow machine slows both.
//!
//! Read in this order: this file (the turns), `latency` and `throughput` (what is measured in each), `report`.

mod cpu;
mod latency;
pub(crate) mod measure;
mod place;
pub(crate) mod report;
mod throughput;

use std::time::{Duration, Instant};

use crate::args::{Arbiter, BenchArgs};
use crate::progress::Progress;
use crate::world::config::{GUEST, NODES};
use crate::world::hosts::Host;
use crate::world::namespace::Network;
use crate::world::{Wish, World};

use self::cpu::Cpu;
use self::latency::Latencies;
use self::place::Places;
use self::throughput::{Count, Shape};

/// One of the two things that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Alone,
    Protected,
}

/// All that was measured on one side, all rounds together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    pub(crate) ping: Latencies,
    pub(crate) get: Latencies,
    pub(crate) set: Latencies,
    pub(crate) pipelined_get: Count,
    pub(crate) pipelined_set: Count,
    /// Processor time of the pipelined reads.
    pub(crate) cpu: Cpu,
    pub(crate) bulk_in: Count,
    pub(crate) bulk_out: Count,
    /// Round trips of the pair's QUIC connection, in us, as the primary's status told them between the parts.
    pub(crate) rtt_us: Vec<u64>,
    pub(crate) log_bytes: u64,
    pub(crate) input_bytes: u64,
}

/// Both sides.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) places: Places,
    pub(crate) alone: Measured,
    pub(crate) protected: Measured,
}

/// Runs all rounds. Must run in a `LocalSet`, after the namespace was entered.
pub(crate) async fn run(args: &BenchArgs, progress: &mut Progress) -> anyhow::Result<Outcome> {
    let network = Network::new().await?;
    let mut outcome = Outcome {
        places: Places::take(args.processors)?,
        alone: Measured::default(),
        protected: Measured::default(),
    };
    let turns = u32::from(args.rounds) * 2;
    let part = Duration::from_secs(args.seconds) / (turns * PARTS);
    for round in 1..=args.rounds {
        for side in [Side::Alone, Side::Protected] {
            let measured = match side {
                Side::Alone => &mut outcome.alone,
                Side::Protected => &mut outcome.protected,
            };
            progress.event(&format!("round {round} of {}, {}", args.rounds, side.told()));
            let dir = args
                .keep
                .as_ref()
                .map(|dir| dir.join(format!("{round}-{}", side.told())));
            let wish = Wish {
                arbiter: Arbiter::File,
                disk: args.disk,
                vcpus: args.vcpus,
                relay: false,
                keep: dir,
                verbose: args.verbose,
            };
            let mut world = World::new(&wish, network.clone()).await?;
            let hosts = Hosts::start(side, &mut world, &outcome.places).await?;
            turn(args, side, hosts, part, measured, progress).await?;
        }
    }
    Ok(outcome)
}

impl Side {
    fn told(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Protected => "protected",
        }
    }
}

/// The hosts of one side, up.
struct Hosts {
    primary: Host,
    backup: Option<Host>,
}

impl Hosts {
    async fn start(side: Side, world: &mut World, places: &Places) -> anyhow::Result<Self> {
        let mut backup = match side {
            Side::Alone => None,
            Side::Protected => Some(places.at_backup(|| world.start(NODES[1], "backup", &[]))?),
        };
        let more: &[&str] = if side == Side::Alone { &["--alone"] } else { &[] };
        let mut primary = world.start(NODES[0], "primary", more)?;
        world.wait_until_up(&mut primary, backup.as_mut()).await?;
        Ok(Self { primary, backup })
    }
}

/// Measures every part on one side, and ends it.
async fn turn(
    args: &BenchArgs,
    side: Side,
    Hosts { primary, backup }: Hosts,
    part: Duration,
    measured: &mut Measured,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    let many = Shape {
        connections: args.clients,
        pipeline: args.pipeline,
        value: SMALL_VALUE,
    };
    let bulk = Shape {
        connections: BULK_CONNECTIONS,
        pipeline: 1,
        value: BULK_VALUE,
    };
    for step in 0..PARTS {
        progress.now(&format!("{}: {}", side.told(), PART_NAMES[step as usize]));
        let until = Instant::now() + part;
        match step {
            0 => measured.ping.extend(latency::ping(GUEST, until).await?),
            1 => measured.get.extend(latency::get(GUEST, until).await?),
            2 => measured.set.extend(latency::set(GUEST, until).await?),
            3 => measured.pipelined_set += throughput::set(GUEST, many, until).await?,
            4 => {
                let before = Cpu::now(&primary, backup.as_ref())?;
                measured.pipelined_get += throughput::get(GUEST, many, until).await?;
                measured.cpu += Cpu::now(&primary, backup.as_ref())?.since(&before);
            }
            5 => measured.bulk_in += throughput::set(GUEST, bulk, until).await?,
            _ => measured.bulk_out += throughput::get(GUEST, bulk, until).await?,
        }
        if let Some(rtt) = primary
            .status()
            .await
            .and_then(|status| status.peer)
            .and_then(|peer| peer.rtt_us)
        {
            measured.rtt_us.push(rtt);
        }
    }
    if let Some(status) = primary.status().await {
        measured.log_bytes += status.log_bytes;
        measured.input_bytes += status.input_bytes;
    }
    Ok(())
}

/// `value` to one part in `steps`.
fn round(value: f64, steps: f64) -> f64 {
    // The zero turns a -0 into a 0.
    (value * steps).round() / steps + 0.0
}

const PARTS: u32 = 7;
const PART_NAMES: [&str; PARTS as usize] = [
    "one connection, PING",
    "one connection, GET",
    "one connection, SET",
    "pipelined SET",
    "pipelined GET",
    "bulk in",
    "bulk out",
];
const SMALL_VALUE: usize = 64;
const BULK_VALUE: usize = 256 << 10;
const BULK_CONNECTIONS: u16 = 4;
