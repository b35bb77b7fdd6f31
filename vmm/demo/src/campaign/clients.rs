//! The clients of a campaign: a few connections that read and write the same few keys at once, and write down every
//! operation with its beginning and its end. They judge nothing.
//!
//! Keys change every so often: what is said of one key is a short history of its own, which can be judged completely.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::task::{JoinHandle, spawn_local};

use super::doubt::Doubts;
use super::history::{Action, Operation};
use crate::client::resp::{Connection, Reply, Words};

/// Running clients.
pub(super) struct Clients {
    shared: Rc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

/// What they have seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) operations: Vec<Operation>,
    pub(super) broken: u64,
    pub(super) longest_wait: Duration,
    /// Why the last look at the keys failed.
    pub(super) failed: Option<String>,
}

struct Shared {
    began: Instant,
    stop: Cell<bool>,
    /// The guest may refuse, and may end connections.
    forgiving: Cell<bool>,
    asked: Cell<u32>,
    seen: RefCell<Seen>,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
enum Question {
    Set(i64),
    Get,
    Incr,
    Del,
}

impl Clients {
    /// Connects and begins to ask. Must run in a `LocalSet`.
    pub(super) async fn start(address: SocketAddr, seed: u64) -> anyhow::Result<Self> {
        let shared = Rc::new(Shared {
            began: Instant::now(),
            stop: Cell::new(false),
            forgiving: Cell::new(false),
            asked: Cell::new(0),
            seen: RefCell::default(),
        });
        let mut tasks = Vec::new();
        for number in 0..CLIENTS {
            let connection = connect(address).await?;
            let dice =
                SmallRng::seed_from_u64(seed.wrapping_mul(u64::from(CLIENTS)).wrapping_add(number.into()));
            tasks.push(spawn_local(client(connection, dice, Rc::clone(&shared))));
        }
        Ok(Self { shared, tasks })
    }

    /// From now on the guest may refuse writes and end connections.
    pub(super) fn forgive(&self) {
        self.shared.forgiving.set(true);
    }

    /// Lets every client get its last answer, and looks at every key once more, over a fresh connection.
    pub(super) async fn stop(self, address: SocketAddr) -> Seen {
        self.shared.stop.set(true);
        for task in self.tasks {
            // A client that failed has left its last question unanswered, which the history shows.
            let _ = task.await;
        }
        let last = last_look(address, &self.shared).await;
        let mut seen = self.shared.seen.take();
        if let Err(error) = last {
            seen.failed = Some(format!("the last look failed: {error:#}"));
        }
        seen
    }
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The keys that are asked for now.
    fn key(&self, dice: &mut SmallRng) -> u32 {
        let asked = self.asked.get();
        self.asked.set(asked + 1);
        asked / OPERATIONS_IN_AN_EPOCH * SLOTS + dice.random_range(0..SLOTS)
    }

    fn note(&self, operation: Operation) {
        self.seen.borrow_mut().operations.push(operation);
    }

    /// What was asked may happen at any time, or never.
    fn note_unanswered(&self, key: u32, question: Question, called: u64) {
        let action = match question {
            Question::Set(value) => Action::MaybeSet(value),
            Question::Incr => Action::MaybeIncr,
            Question::Del => Action::MaybeDel,
            Question::Get => return,
        };
        self.note(operation(key, called, u64::MAX, action));
    }
}

async fn connect(address: SocketAddr) -> anyhow::Result<Connection> {
    tokio::time::timeout(SILENCE_MAX, Connection::open(address))
        .await
        .context("The guest does not accept")?
        .context("Cannot connect to the guest")
}

async fn client(mut connection: Connection, mut dice: SmallRng, shared: Rc<Shared>) {
    while !shared.stop.get() {
        let questions: Vec<_> = (0..dice.random_range(1..=BURST_MAX))
            .map(|_| (shared.key(&mut dice), Question::pick(&mut dice)))
            .collect();
        if let Err(error) = burst(&mut connection, &questions, &shared).await {
            if !shared.forgiving.get() {
                let mut seen = shared.seen.borrow_mut();
                seen.broken += 1;
                seen.failed = Some(format!("a connection broke: {error}"));
            }
            return;
        }
    }
}

/// Asks some questions at once and waits for all answers.
async fn burst(
    connection: &mut Connection,
    questions: &[(u32, Question)],
    shared: &Shared,
) -> io::Result<()> {
    let called = shared.now();
    let words: Vec<Words> = questions
        .iter()
        .map(|(key, question)| question.words(*key))
        .collect();
    let mut answered = 0;
    let end = async {
        connection.ask(&words).await?;
        for (key, question) in questions {
            let reply = connection.reply().await?;
            answered += 1;
            match question.answered(&reply) {
                Some(action) => shared.note(operation(*key, called, shared.now(), action)),
                None if shared.forgiving.get() => shared.note_unanswered(*key, *question, called),
                None => {
                    return Err(io::Error::other(format!(
                        "{question:?} was answered with {reply:?}"
                    )));
                }
            }
        }
        Ok(())
    };
    let end = tokio::time::timeout(SILENCE_MAX, end).await;
    let now = shared.now();
    for (key, question) in &questions[answered..] {
        shared.note_unanswered(*key, *question, called);
    }
    let mut seen = shared.seen.borrow_mut();
    seen.longest_wait = seen.longest_wait.max(Duration::from_nanos(now - called));
    end.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))
        .flatten()
}

pub(super) fn operation(key: u32, called: u64, returned: u64, action: Action) -> Operation {
    Operation {
        key,
        called,
        returned,
        action,
        is_last_look: false,
    }
}

/// Reads every key that was ever asked for. A key that the guest does not tell of without a reason fails the look, but not
/// before all others were read.
async fn last_look(address: SocketAddr, shared: &Shared) -> anyhow::Result<()> {
    let keys = 0..(shared.asked.get() / OPERATIONS_IN_AN_EPOCH + 1) * SLOTS;
    let doubts = Doubts::of(&shared.seen.borrow().operations);
    let may_be_silent = |key: &u32| shared.forgiving.get() && doubts.allow_silence_about(*key);
    let (doubtful, sure): (Vec<u32>, Vec<u32>) = keys.partition(may_be_silent);
    let mut connection = connect(address).await?;
    let mut untold = Vec::new();
    // Doubtful keys are asked for one by one: a guest that refuses to tell of one refuses all that wait behind it.
    for keys in sure.chunks(LOOKS_AT_ONCE).chain(doubtful.chunks(1)) {
        let look = tokio::time::timeout(SILENCE_MAX, look(&mut connection, keys, shared)).await;
        untold.extend(look.context("The guest is silent")??);
    }
    untold.retain(|(key, _)| !may_be_silent(key));
    match untold.first() {
        None => Ok(()),
        Some((key, reply)) => bail!(
            "The guest does not tell of {} keys; GET of key {key} was answered with {reply}",
            untold.len()
        ),
    }
}

/// Reads some keys; answers which of them the guest does not tell of, and what it says instead.
async fn look(
    connection: &mut Connection,
    keys: &[u32],
    shared: &Shared,
) -> anyhow::Result<Vec<(u32, String)>> {
    let called = shared.now();
    let words: Vec<Words> = keys.iter().map(|key| Question::Get.words(*key)).collect();
    connection.ask(&words).await.context("Cannot ask")?;
    let mut untold = Vec::new();
    for key in keys {
        let reply = connection.reply().await.context("No reply")?;
        match (Question::Get.answered(&reply), reply) {
            (Some(action), _) => shared.note(Operation {
                is_last_look: true,
                ..operation(*key, called, shared.now(), action)
            }),
            (None, Reply::Error(text)) => untold.push((*key, String::from_utf8_lossy(&text).into_owned())),
            (None, reply) => bail!("GET was answered with {reply:?}"),
        }
    }
    Ok(untold)
}

impl Question {
    fn pick(dice: &mut SmallRng) -> Self {
        match dice.random_range(0..8) {
            0 | 1 => Self::Set(dice.random_range(0..VALUES)),
            2..=4 => Self::Get,
            5 | 6 => Self::Incr,
            _ => Self::Del,
        }
    }

    fn words(self, key: u32) -> Words {
        let key = format!("campaign:{key}").into_bytes();
        match self {
            Self::Set(value) => vec![b"SET".to_vec(), key, value.to_string().into_bytes()],
            Self::Get => vec![b"GET".to_vec(), key],
            Self::Incr => vec![b"INCR".to_vec(), key],
            Self::Del => vec![b"DEL".to_vec(), key],
        }
    }

    /// What happened, if this is an answer to it.
    fn answered(self, reply: &Reply) -> Option<Action> {
        match (self, reply) {
            (Self::Set(value), Reply::Simple(_)) => Some(Action::Set(value)),
            (Self::Get, Reply::Bulk(None)) => Some(Action::Get(None)),
            (Self::Get, Reply::Bulk(Some(text))) => {
                let value = std::str::from_utf8(text).ok()?.parse().ok()?;
                Some(Action::Get(Some(value)))
            }
            (Self::Incr, Reply::Integer(value)) => Some(Action::Incr(*value)),
            (Self::Del, Reply::Integer(count)) => Some(Action::Del(*count != 0)),
            _ => None,
        }
    }
}

/// Few, so that many of their operations meet, and a history stays cheap to judge.
const CLIENTS: u8 = 6;
const BURST_MAX: usize = 3;
const SLOTS: u32 = 4;
const OPERATIONS_IN_AN_EPOCH: u32 = 160;
const VALUES: i64 = 1_000_000;
const LOOKS_AT_ONCE: usize = 64;
/// A guest that says nothing for so long is broken.
const SILENCE_MAX: Duration = Duration::from_secs(15);
