//! The load: many connections, each with its own checker, that ask one burst after the other until told to stop, and the
//! last look at every key over fresh connections. All of it runs on the caller's thread, so that one clock and one order
//! hold for all connections.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::task::{JoinHandle, spawn_local};

use super::check::{Checker, Losses, SharedCounters};
use super::command::{Requests, shared_name};
use super::resp::{Connection, Reply, Words};

/// What all connections together have seen so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Replies received.
    pub(crate) acked: u64,
    /// Replies that no never-failing server would have given.
    pub(crate) wrong: u64,
    /// Connections that ended, or were silent for [`SILENCE_MAX`].
    pub(crate) broken: u64,
    /// The longest that any connection with an open request waited for its next reply.
    pub(crate) longest_gap: Duration,
    /// When that wait was over.
    pub(crate) gap_end: Option<Instant>,
    /// What went wrong, the first few, for people.
    pub(crate) stories: Vec<String>,
}

impl Tally {
    fn gap(&mut self, since: Instant) -> Instant {
        let now = Instant::now();
        let gap = now.saturating_duration_since(since);
        if gap > self.longest_gap {
            self.longest_gap = gap;
            self.gap_end = Some(now);
        }
        now
    }

    fn story(&mut self, story: String) {
        if self.stories.len() < STORIES_MAX {
            self.stories.push(story);
        }
    }
}

/// A running load.
pub(crate) struct Load {
    address: SocketAddr,
    shared: Rc<Shared>,
    clients: Vec<JoinHandle<Checker>>,
}

#[derive(Default)]
struct Shared {
    stop: Cell<bool>,
    tally: RefCell<Tally>,
    counters: RefCell<SharedCounters>,
}

impl Load {
    /// Connects `clients` times and starts to ask. Must run in a `LocalSet`.
    pub(crate) async fn start(address: SocketAddr, clients: u16, seed: u64) -> anyhow::Result<Self> {
        let shared = Rc::new(Shared::default());
        let mut connections = Vec::new();
        for _ in 0..clients {
            let connection = tokio::time::timeout(SILENCE_MAX, Connection::open(address)).await;
            connections.push(
                connection
                    .context("The guest does not accept")?
                    .context("Cannot connect to the guest")?,
            );
        }
        let clients = (0..clients)
            .zip(connections)
            .map(|(owner, connection)| {
                spawn_local(client(
                    connection,
                    Checker::new(owner),
                    Requests::new(seed, owner),
                    Rc::clone(&shared),
                ))
            })
            .collect();
        Ok(Self {
            address,
            shared,
            clients,
        })
    }

    /// What was seen so far.
    pub(crate) fn tally(&self) -> Tally {
        self.shared.tally.borrow().clone()
    }

    /// Lets every connection get its last replies, then reads every key back. Returns who can do so again, and what is
    /// missing.
    pub(crate) async fn finish(self) -> anyhow::Result<(Judge, Losses)> {
        let address = self.address;
        let mut judge = self.stop().await?;
        let losses = judge.read_back(address).await.unwrap_or_else(|error| {
            judge.tally.broken += 1;
            judge.tally.story(format!("Reading back failed: {error:#}"));
            Losses::default()
        });
        Ok((judge, losses))
    }

    /// Lets every connection get its last replies.
    pub(crate) async fn stop(self) -> anyhow::Result<Judge> {
        self.shared.stop.set(true);
        let mut checkers = Vec::new();
        for client in self.clients {
            checkers.push(client.await.context("A client failed")?);
        }
        Ok(Judge {
            tally: self.shared.tally.borrow().clone(),
            checkers,
            counters: self.shared.counters.take(),
        })
    }
}

/// What all connections know at the end.
#[derive(Clone, Debug)]
pub(crate) struct Judge {
    pub(crate) tally: Tally,
    checkers: Vec<Checker>,
    counters: SharedCounters,
}

impl Judge {
    /// Reads every key back over fresh connections and says what is missing.
    pub(crate) async fn read_back(&self, address: SocketAddr) -> anyhow::Result<Losses> {
        read_all(address, &self.checkers, &self.counters).await
    }
}

/// One connection, from its first request to its last reply.
async fn client(
    mut connection: Connection,
    mut checker: Checker,
    mut requests: Requests,
    shared: Rc<Shared>,
) -> Checker {
    while !shared.stop.get() {
        let commands = requests.burst();
        let words: Vec<Words> = commands
            .iter()
            .map(|command| command.words_of(requests.owner()))
            .collect();
        for command in commands {
            checker.send(&mut shared.counters.borrow_mut(), command);
        }
        if let Err(error) = burst(&mut connection, &words, &mut checker, &shared).await {
            let mut tally = shared.tally.borrow_mut();
            tally.broken += 1;
            tally.story(format!("Connection {} broke: {error}", requests.owner()));
            break;
        }
    }
    checker
}

async fn burst(
    connection: &mut Connection,
    words: &[Words],
    checker: &mut Checker,
    shared: &Shared,
) -> io::Result<()> {
    let mut last = Instant::now();
    let asked = tokio::time::timeout(SILENCE_MAX, connection.ask(words)).await;
    asked
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))
        .flatten()?;
    while checker.in_flight() > 0 {
        let reply = tokio::time::timeout(SILENCE_MAX, connection.reply()).await;
        let reply = reply
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))
            .flatten();
        let mut tally = shared.tally.borrow_mut();
        last = tally.gap(last);
        let reply = reply?;
        tally.acked += 1;
        if let Err(wrong) = checker.receive(&mut shared.counters.borrow_mut(), &reply) {
            tally.wrong += 1;
            tally.story(wrong.story);
        }
    }
    Ok(())
}

async fn read_all(
    address: SocketAddr,
    checkers: &[Checker],
    counters: &SharedCounters,
) -> anyhow::Result<Losses> {
    let mut losses = Losses::default();
    for checker in checkers {
        let found = read_keys(address, checker.keys()).await?;
        let part = checker.finish(&found);
        losses.lost += part.lost;
        losses.wrong += part.wrong;
    }
    let names = (0..super::command::SHARED).map(shared_name).collect();
    let found = read_keys(address, names).await?;
    for (number, counter) in (0..).zip(counters) {
        let text = found
            .get(&shared_name(number))
            .cloned()
            .flatten()
            .unwrap_or_else(|| b"0".to_vec());
        match String::from_utf8_lossy(&text)
            .parse()
            .map(|value| counter.finish(value))
        {
            Ok(Ok(lost)) => losses.lost += lost,
            Ok(Err(_)) | Err(_) => losses.wrong += 1,
        }
    }
    Ok(losses)
}

/// Reads keys over a fresh connection.
async fn read_keys(
    address: SocketAddr,
    keys: Vec<Vec<u8>>,
) -> anyhow::Result<BTreeMap<Vec<u8>, Option<Vec<u8>>>> {
    let read = async {
        let mut connection = Connection::open(address).await.context("Cannot connect")?;
        let mut found = BTreeMap::new();
        for chunk in keys.chunks(READ_BACK_BURST) {
            let words: Vec<Words> = chunk
                .iter()
                .map(|key| vec![b"GET".to_vec(), key.clone()])
                .collect();
            connection.ask(&words).await.context("Cannot ask")?;
            for key in chunk {
                match connection.reply().await.context("No reply")? {
                    Reply::Bulk(value) => found.insert(key.clone(), value),
                    other => bail!("GET was answered with {other:?}"),
                };
            }
        }
        Ok(found)
    };
    tokio::time::timeout(SILENCE_MAX, read)
        .await
        .context("The guest is silent")?
}

/// A connection that says nothing for so long counts as broken.
const SILENCE_MAX: Duration = Duration::from_secs(10);
const STORIES_MAX: usize = 10;
const READ_BACK_BURST: usize = 16;

#[cfg(test)]
mod tests;
