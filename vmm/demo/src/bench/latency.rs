//! How long one request takes on one connection that has no other under way.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::throughput::value;
use crate::client::resp::{Connection, Reply, Words};

/// Times of requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies(Vec<Duration>);

impl Latencies {
    pub(super) fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    /// The time that `part` of all requests (0 to 1) did not exceed, in us; nothing if there were none.
    pub(crate) fn percentile_us(&self, part: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().checked_sub(1)?;
        let at = (part * last as f64).round() as usize;
        Some(sorted[at.min(last)].as_nanos() as f64 / 1e3)
    }
}

pub(super) async fn ping(address: SocketAddr, until: Instant) -> anyhow::Result<Latencies> {
    measure(
        address,
        until,
        vec![b"PING".to_vec()],
        &Reply::Simple(b"PONG".to_vec()),
    )
    .await
}

pub(super) async fn get(address: SocketAddr, until: Instant) -> anyhow::Result<Latencies> {
    let words = vec![b"SET".to_vec(), KEY.to_vec(), value(VALUE)];
    let ok = Reply::Simple(b"OK".to_vec());
    // One write first, so that there is something to get.
    measure(address, Instant::now(), words, &ok).await?;
    measure(
        address,
        until,
        vec![b"GET".to_vec(), KEY.to_vec()],
        &Reply::Bulk(Some(value(VALUE))),
    )
    .await
}

pub(super) async fn set(address: SocketAddr, until: Instant) -> anyhow::Result<Latencies> {
    let words = vec![b"SET".to_vec(), KEY.to_vec(), value(VALUE)];
    measure(address, until, words, &Reply::Simple(b"OK".to_vec())).await
}

/// Asks the same again and again. The first few are not counted: they pay for the connection's start. They take a
/// quarter of the time at most, or a slow server would have none left to be measured in.
async fn measure(
    address: SocketAddr,
    until: Instant,
    words: Words,
    right: &Reply,
) -> anyhow::Result<Latencies> {
    let mut connection = Connection::open_once_free(address)
        .await
        .context("Cannot connect to the guest")?;
    let command = [words];
    let mut times = Vec::new();
    let begin = Instant::now();
    let warm = begin + until.saturating_duration_since(begin) / 4;
    for asked in 0_u32.. {
        let start = Instant::now();
        let counts = asked > WARM_UP || asked > 0 && start >= warm;
        if counts && start >= until {
            break;
        }
        connection.ask(&command).await.context("Cannot ask the guest")?;
        let reply = tokio::time::timeout(SILENCE_MAX, connection.reply()).await;
        let reply = reply
            .context("The guest is silent")?
            .context("The guest hung up")?;
        if reply != *right {
            bail!("The guest answered {reply:?}");
        }
        if counts {
            times.push(start.elapsed());
        }
    }
    Ok(Latencies(times))
}

const KEY: &[u8] = b"latency";
const VALUE: usize = 64;
const WARM_UP: u32 = 20;
const SILENCE_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_times() {
        let times = Latencies((1..=101).rev().map(Duration::from_micros).collect());
        assert_eq!(times.percentile_us(0.0), Some(1.0));
        assert_eq!(times.percentile_us(0.5), Some(51.0));
        assert_eq!(times.percentile_us(0.99), Some(100.0));
        assert_eq!(times.percentile_us(1.0), Some(101.0));
        assert_eq!(Latencies::default().percentile_us(0.5), None);
    }
}
