//! How much many connections get done together, each with several requests under way.

use std::net::SocketAddr;
use std::ops::AddAssign;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::future::try_join_all;

use crate::client::resp::{Connection, Words, encode};

/// Requests that were answered, and how long that took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    requests: u64,
    bytes: u64,
    time: Duration,
}

impl Count {
    pub(crate) fn requests_per_s(&self) -> Option<f64> {
        (!self.time.is_zero()).then(|| self.requests as f64 / self.time.as_secs_f64())
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests
    }

    /// Of values, without the words around them.
    pub(crate) fn mib_per_s(&self) -> Option<f64> {
        (!self.time.is_zero()).then(|| self.bytes as f64 / self.time.as_secs_f64() / f64::from(1 << 20))
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, more: Self) {
        self.requests += more.requests;
        self.bytes += more.bytes;
        self.time += more.time;
    }
}

/// What the connections do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) connections: u16,
    pub(super) pipeline: u16,
    pub(super) value: usize,
}

pub(super) async fn set(address: SocketAddr, shape: Shape, until: Instant) -> anyhow::Result<Count> {
    run(address, shape, until, b"+OK\r\n", |key| {
        vec![b"SET".to_vec(), key, value(shape.value)]
    })
    .await
}

/// Gets what [`set`] of the same shape wrote before.
pub(super) async fn get(address: SocketAddr, shape: Shape, until: Instant) -> anyhow::Result<Count> {
    let mut right = format!("${}\r\n", shape.value).into_bytes();
    right.extend_from_slice(&value(shape.value));
    right.extend_from_slice(b"\r\n");
    run(address, shape, until, &right, |key| vec![b"GET".to_vec(), key]).await
}

async fn run(
    address: SocketAddr,
    shape: Shape,
    until: Instant,
    right: &[u8],
    words: impl Fn(Vec<u8>) -> Words,
) -> anyhow::Result<Count> {
    let start = Instant::now();
    let pipeline = usize::from(shape.pipeline);
    let right = right.repeat(pipeline);
    let all = (0..shape.connections).map(|connection| {
        let mut burst = Vec::new();
        for key in 0..pipeline {
            let key = format!("bench:{}:{connection}:{key}", shape.value).into_bytes();
            encode(&words(key), &mut burst);
        }
        client(address, burst, until, &right)
    });
    let bursts: u64 = try_join_all(all).await?.into_iter().sum();
    let requests = bursts * u64::from(shape.pipeline);
    Ok(Count {
        requests,
        bytes: requests * shape.value as u64,
        time: start.elapsed(),
    })
}

/// Sends the same burst again and again, the next one when all of it is answered, and counts them. Client and server
/// share a machine, so it does as little as a client can that looks at every byte.
async fn client(address: SocketAddr, burst: Vec<u8>, until: Instant, right: &[u8]) -> anyhow::Result<u64> {
    let mut connection = Connection::open_once_free(address)
        .await
        .context("Cannot connect to the guest")?;
    let mut answered = 0;
    while Instant::now() < until {
        let round = async {
            connection.send(&burst).await.context("Cannot ask the guest")?;
            connection.is_answered(right).await.context("The guest hung up")
        };
        let is_right = tokio::time::timeout(SILENCE_MAX, round)
            .await
            .context("The guest is silent")??;
        if !is_right {
            bail!("The guest gave a wrong answer to a request of the bench");
        }
        answered += 1;
    }
    Ok(answered)
}

/// A value of the bench.
pub(super) fn value(size: usize) -> Vec<u8> {
    (0..size).map(|at| b'a' + (at % 23) as u8).collect()
}

const SILENCE_MAX: Duration = Duration::from_secs(10);
