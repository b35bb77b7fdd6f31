//! `lab idle`: how much log a guest makes that boots and then does nothing.

use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use super::Order;
use crate::lab::report::Report;
use crate::lab::wires::Node;
use crate::lab::world::{Protection, World};

/// Tells the story once.
pub fn play(order: &Order) -> anyhow::Result<Report> {
    let mut world = World::build(&order.setting, "idle")?;
    world.power_on(Protection::Pair)?;
    let booted = Sample::take(&world)?;
    // What a guest still does just after its boot is no idling.
    std::thread::sleep(SETTLE);
    let first = Sample::take(&world)?;
    std::thread::sleep(IDLE);
    let last = Sample::take(&world)?;
    let seconds = (last.uptime_ms - first.uptime_ms) as f64 / 1000.0;
    let bits = (last.log_bytes - first.log_bytes) as f64 * 8.0 / seconds;

    let mut report = order.report("idle");
    report.figure(
        "boot_log_bytes",
        "Log until the server answered, bytes",
        booted.log_bytes,
    );
    report.figure("boot_exits", "Exits until then", booted.position);
    report.figure("seconds", "Idle for, s", seconds);
    report.figure(
        "idle_exits_per_s",
        "Exits a second, idle",
        ((last.position - first.position) as f64 / seconds).round(),
    );
    report.figure("log_bits_per_s", "Log, idle, bit/s", bits.round());
    report.must(
        bits < IDLE_BITS_MAX,
        format!("An idle guest makes {bits:.0} bit/s of log"),
    );
    Ok(report)
}

struct Sample {
    uptime_ms: u64,
    log_bytes: u64,
    position: u64,
}

impl Sample {
    fn take(world: &World) -> anyhow::Result<Self> {
        let status = world.status(Node::A)?;
        let number =
            |key: &str| Value::as_u64(&status[key]).with_context(|| format!("The status has no {key}"));
        Ok(Self {
            uptime_ms: number("uptime_ms")?,
            log_bytes: number("log_bytes")?,
            position: number("position")?,
        })
    }
}

const SETTLE: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(30);
/// What a line to a far backup has to carry when nothing happens.
const IDLE_BITS_MAX: f64 = 20_000.0;
