//! The demo's clients for whoever brings a world of their own: checked connections to a server at any address, and the
//! bench's measurements of one. The lab is such a caller; the demo itself does not pass through here.
//!
//! Everything async stays inside: an [`Outside`] is a thread with all connections on it, and its methods block.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::task::LocalSet;

pub use crate::bench::measure::Rates;
use crate::client;
use crate::client::load::{Judge, Load, Tally};
use crate::client::resp::{Connection, Reply};

/// Whether the server at `address` answers a PING now.
pub fn answers(address: SocketAddr) -> anyhow::Result<bool> {
    block_on(async { Ok(client::answers(address, PING_TIME).await) })
}

/// Tells a redis-server to end; its answer is the end of the connection.
pub fn shut_down(address: SocketAddr) -> anyhow::Result<()> {
    block_on(async {
        let mut connection = Connection::open(address)
            .await
            .context("Cannot connect to the guest")?;
        let ended = async {
            connection.ask(&[vec![b"SHUTDOWN".to_vec()]]).await?;
            connection.reply().await
        };
        match tokio::time::timeout(SHUT_DOWN_TIME, ended).await {
            Ok(Err(_)) => Ok(()),
            Ok(Ok(reply)) => bail!("The guest answered {reply:?} and goes on"),
            Err(_) => bail!("The guest does not shut down"),
        }
    })
}

/// What a redis-server takes the time to be, since 1970.
pub fn time(address: SocketAddr) -> anyhow::Result<Duration> {
    let reply = block_on(async {
        let asked = async {
            let mut connection = Connection::open(address).await?;
            connection.ask(&[vec![b"TIME".to_vec()]]).await?;
            connection.reply().await
        };
        let answered = tokio::time::timeout(SHUT_DOWN_TIME, asked).await;
        Ok(answered.context("The guest does not tell the time")??)
    })?;
    let number = |reply: &Reply| match reply {
        Reply::Bulk(Some(text)) => std::str::from_utf8(text).ok()?.parse::<u64>().ok(),
        _ => None,
    };
    match &reply {
        Reply::Array(parts) if parts.len() == 2 => number(&parts[0]).zip(number(&parts[1])),
        _ => None,
    }
    .map(|(seconds, micros)| Duration::from_secs(seconds) + Duration::from_micros(micros))
    .with_context(|| format!("The guest answered {reply:?} when asked for the time"))
}

/// Measures the server at `address` for about `time` in all, with `connections` for the throughput parts.
pub fn measure(address: SocketAddr, connections: u16, time: Duration) -> anyhow::Result<Rates> {
    block_on(crate::bench::measure::measure(address, connections, time))
}

/// What the clients saw.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Replies received.
    pub acked: u64,
    /// Replies that no never-failing server would have given.
    pub wrong: u64,
    /// Connections that ended, or were silent for too long.
    pub broken: u64,
    /// The longest that any connection with an open request waited for its next reply.
    pub longest_gap: Duration,
    /// What went wrong, the first few, for people.
    pub stories: Vec<String>,
}

/// What is missing or wrong after everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Acknowledged writes that are not there.
    pub lost: u64,
    /// Values that nobody wrote.
    pub wrong: u64,
}

/// Running clients. Dropping them lets them go on until the process ends; [`Outside::stop`] them instead.
#[derive(Debug)]
pub struct Outside {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: JoinHandle<anyhow::Result<Memory>>,
}

/// What the clients remember when they have stopped.
#[derive(Debug)]
pub struct Memory {
    judge: Judge,
}

impl Outside {
    /// Starts `clients` connections to a server. The same seed asks the same questions.
    pub fn start(address: SocketAddr, clients: u16, seed: u64) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let theirs = (Arc::clone(&stop), Arc::clone(&seen));
        let thread = std::thread::Builder::new()
            .name("outside".into())
            .spawn(move || block_on(run(address, clients, seed, &theirs.0, &theirs.1)))
            .context("Cannot start the clients' thread")?;
        Ok(Self { stop, seen, thread })
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets every connection get its last replies, and ends.
    pub fn stop(self) -> anyhow::Result<Memory> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(memory) => memory,
            Err(_) => bail!("The clients' thread failed"),
        }
    }
}

impl Memory {
    /// What was seen until the end.
    pub fn seen(&self) -> Seen {
        seen(&self.judge.tally)
    }

    /// Reads every key back, over fresh connections, from any server that should have them: the same one, or one that
    /// was started on what the first one left on its disk.
    pub fn read_back(&self, address: SocketAddr) -> anyhow::Result<Losses> {
        let losses = block_on(self.judge.read_back(address))?;
        Ok(Losses {
            lost: losses.lost,
            wrong: losses.wrong,
        })
    }
}

async fn run(
    address: SocketAddr,
    clients: u16,
    seed: u64,
    stop: &AtomicBool,
    shown: &Mutex<Seen>,
) -> anyhow::Result<Memory> {
    let load = Load::start(address, clients, seed).await?;
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(SAMPLE_INTERVAL).await;
        *shown.lock().unwrap_or_else(PoisonError::into_inner) = seen(&load.tally());
    }
    Ok(Memory {
        judge: load.stop().await?,
    })
}

fn seen(tally: &Tally) -> Seen {
    Seen {
        acked: tally.acked,
        wrong: tally.wrong,
        broken: tally.broken,
        longest_gap: tally.longest_gap,
        stories: tally.stories.clone(),
    }
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("Cannot start tokio")?;
    LocalSet::new().block_on(&runtime, work)
}

/// A guest on an emulated host takes its time for three round trips.
const PING_TIME: Duration = Duration::from_secs(2);
const SHUT_DOWN_TIME: Duration = Duration::from_secs(10);
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);
