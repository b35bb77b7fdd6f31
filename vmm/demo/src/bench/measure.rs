//! The bench's measurements of a server that somebody else runs: called through `outside.rs`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::latency::{self, Latencies};
use super::throughput::{self, Shape};
use super::{SMALL_VALUE, round};

/// How fast a server is. Keys are never renamed. A number that could not be measured is null.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// One connection, one request at a time.
    pub get_p50_us: Option<f64>,
    /// The same, the slowest of a hundred.
    pub get_p99_us: Option<f64>,
    /// One connection, one write at a time.
    pub set_p50_us: Option<f64>,
    /// The same, the slowest of a hundred.
    pub set_p99_us: Option<f64>,
    /// Many connections with many reads in flight.
    pub pipelined_get_per_s: Option<f64>,
    /// Many connections with many writes in flight.
    pub pipelined_set_per_s: Option<f64>,
}

pub(crate) async fn measure(address: SocketAddr, connections: u16, time: Duration) -> anyhow::Result<Rates> {
    let part = time / PARTS;
    let shape = Shape {
        connections,
        pipeline: PIPELINE,
        value: SMALL_VALUE,
    };
    let get = latency::get(address, Instant::now() + part).await?;
    let set = latency::set(address, Instant::now() + part).await?;
    // Writes first: the reads get what they wrote.
    let sets = throughput::set(address, shape, Instant::now() + part).await?;
    let gets = throughput::get(address, shape, Instant::now() + part).await?;
    let ten = |value: Option<f64>| value.map(|value| round(value, 10.0));
    let at = |times: &Latencies, percentile| ten(times.percentile_us(percentile));
    Ok(Rates {
        get_p50_us: at(&get, 0.5),
        get_p99_us: at(&get, 0.99),
        set_p50_us: at(&set, 0.5),
        set_p99_us: at(&set, 0.99),
        pipelined_get_per_s: ten(gets.requests_per_s()),
        pipelined_set_per_s: ten(sets.requests_per_s()),
    })
}

const PARTS: u32 = 4;
/// As many as `lockstep bench` has unless told otherwise.
const PIPELINE: u16 = 16;
