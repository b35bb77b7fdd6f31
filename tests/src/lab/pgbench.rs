//! The clients of a PostgreSQL guest: Debian's pgbench outside, with one transaction a line in its log, and the books that
//! must balance in the end. Every transaction leaves a row in `pgbench_history` that says whose it was; one that a client
//! was told of and that has no row there is lost.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use lockstep_demo::outside::Losses;

use super::packages::postgres;
use crate::qemu::processes::{Process, eventually};

/// What is asked of a server's books, in the end: lines of a word and numbers.
pub const QUERY: &str = "SELECT 'accounts', sum(abalance) FROM pgbench_accounts;
SELECT 'tellers', sum(tbalance) FROM pgbench_tellers;
SELECT 'branches', sum(bbalance) FROM pgbench_branches;
SELECT 'history', coalesce(sum(delta), 0) FROM pgbench_history;
SELECT 'client', trim(filler), count(*) FROM pgbench_history GROUP BY filler;
";
/// How large pgbench's database is: 100,000 accounts for each.
pub const SCALE: u32 = 1;

/// pgbench's own transaction, which also notes whose it is.
const TRANSACTION: &str = "\\set aid random(1, 100000 * :scale)
\\set bid random(1, 1 * :scale)
\\set tid random(1, 10 * :scale)
\\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime, filler)
    VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP, CAST(:client_id AS text));
END;
";

/// Whether the server takes connections now.
pub fn answers(server: SocketAddr) -> anyhow::Result<bool> {
    let mut ask = program("pg_isready", server)?;
    let status = ask
        .args(["-q", "-t", "2"])
        .status()
        .context("Cannot run pg_isready")?;
    Ok(status.success())
}

/// Asks a running server for its books.
pub fn ask_books(server: SocketAddr) -> anyhow::Result<Books> {
    let mut ask = program("psql", server)?;
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), QUERY)?;
    ask.args(["-v", "ON_ERROR_STOP=1", "-qAt", "-F", " ", "-f"])
        .arg(file.path());
    let answer = ask.arg("postgres").output().context("Cannot run psql")?;
    if !answer.status.success() {
        bail!("psql: {}", String::from_utf8_lossy(&answer.stderr).trim());
    }
    Books::parse(String::from_utf8_lossy(&answer.stdout).lines())
}

fn program(name: &str, server: SocketAddr) -> anyhow::Result<Command> {
    let mut command = Command::new(postgres()?.join("bin").join(name));
    command
        .args([
            "-h",
            &server.ip().to_string(),
            "-p",
            &server.port().to_string(),
            "-U",
            "postgres",
        ])
        .env("PGCONNECT_TIMEOUT", "30")
        .stdin(Stdio::null());
    Ok(command)
}

/// A running pgbench.
#[derive(Debug)]
pub struct Pgbench {
    process: Process,
    folder: PathBuf,
}

impl Pgbench {
    /// Starts so many clients, which go on for `time`. The same seed asks the same.
    pub fn start(
        server: SocketAddr,
        clients: u16,
        seed: u64,
        time: Duration,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let script = folder.join("transaction.sql");
        fs::write(&script, TRANSACTION)?;
        let mut command = program("pgbench", server)?;
        let numbers = [
            ("--client", clients.to_string()),
            ("--time", time.as_secs().to_string()),
            ("--scale", SCALE.to_string()),
            ("--random-seed", seed.to_string()),
            ("--progress", "1".to_owned()),
        ];
        for (option, number) in numbers {
            command.arg(option).arg(number);
        }
        command
            .args(["--no-vacuum", "--log", "--log-prefix"])
            .arg(folder.join(LOG))
            .arg("--file")
            .arg(script)
            .arg("postgres")
            .stdout(File::create(folder.join(SAID))?)
            .stderr(File::create(folder.join(PROGRESS))?);
        Ok(Self {
            process: Process::start(&mut command)?,
            folder: folder.into(),
        })
    }

    /// Waits until transactions are done.
    pub fn wait_until_busy(&mut self) -> anyhow::Result<()> {
        eventually("pgbench to do transactions", BUSY_TIME, || {
            self.process.check().with_context(|| self.progress())?;
            let busy = |line: &str| line.starts_with("progress:") && !line.contains(" 0.0 tps");
            Ok(self.progress().lines().any(busy).then_some(()))
        })
    }

    /// Waits for its end and tells what its clients were told.
    pub fn finish(mut self) -> anyhow::Result<History> {
        let ended = eventually("pgbench to end", END_TIME, || self.process.ended())?;
        let progress = self.progress();
        let aborted = progress.lines().filter(|line| line.contains("aborted")).count() as u64;
        if !ended.success() && aborted == 0 {
            bail!("pgbench failed: {ended}. {progress}");
        }
        let mut history = History {
            broken: aborted,
            stories: progress
                .lines()
                .filter(|line| line.contains("error"))
                .map(str::to_owned)
                .collect(),
            transactions: Vec::new(),
        };
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(LOG) {
                history.read(&fs::read_to_string(entry.path())?)?;
                fs::remove_file(entry.path())?;
            }
        }
        history.transactions.sort_by_key(|transaction| transaction.at);
        Ok(history)
    }

    fn progress(&self) -> String {
        fs::read_to_string(self.folder.join(PROGRESS)).unwrap_or_default()
    }
}

/// A transaction that a client was told is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Transaction {
    client: u16,
    /// Since 1970.
    at: Duration,
}

/// What all clients were told.
#[derive(Clone, Debug)]
pub struct History {
    /// Connections that ended too early.
    pub broken: u64,
    /// What pgbench complained of.
    pub stories: Vec<String>,
    transactions: Vec<Transaction>,
}

impl History {
    /// Takes lines of pgbench's log: client, number, duration, script, seconds, microseconds.
    fn read(&mut self, log: &str) -> anyhow::Result<()> {
        for line in log.lines() {
            let mut words = line.split_whitespace().map(str::parse::<u64>);
            let mut number = || words.next()?.ok();
            let read = (number(), number(), number(), number(), number(), number());
            let (Some(client), _, _, _, Some(seconds), Some(micros)) = read else {
                bail!("pgbench's log has the line {line:?}");
            };
            self.transactions.push(Transaction {
                client: u16::try_from(client)?,
                at: Duration::from_secs(seconds) + Duration::from_micros(micros),
            });
        }
        Ok(())
    }

    /// How many were done before a moment, since 1970, and after it.
    pub fn around(&self, moment: Duration) -> (u64, u64) {
        let before = self
            .transactions
            .partition_point(|transaction| transaction.at < moment);
        (before as u64, (self.transactions.len() - before) as u64)
    }

    /// The longest that any client waited from one transaction to the next, before a moment and in all.
    pub fn longest_gaps(&self, moment: Duration) -> (Duration, Duration) {
        let mut last = BTreeMap::new();
        let (mut before, mut all) = (Duration::ZERO, Duration::ZERO);
        for transaction in &self.transactions {
            if let Some(earlier) = last.insert(transaction.client, transaction.at) {
                let gap = transaction.at.saturating_sub(earlier);
                all = all.max(gap);
                if transaction.at < moment {
                    before = before.max(gap);
                }
            }
        }
        (before, all)
    }

    /// What is missing in the books, or wrong with them. Of each client at most one transaction more than it was told of
    /// may be there, and only if its connection broke.
    pub fn audit(&self, books: &Books) -> Losses {
        let mut losses = Losses {
            lost: 0,
            wrong: books.unbalanced(),
        };
        let mut told: BTreeMap<u16, u64> = books.clients.keys().map(|client| (*client, 0)).collect();
        for transaction in &self.transactions {
            *told.entry(transaction.client).or_default() += 1;
        }
        let mut untold = 0;
        for (client, told) in told {
            let there = books.clients.get(&client).copied().unwrap_or_default();
            losses.lost += told.saturating_sub(there);
            untold += there.saturating_sub(told);
        }
        losses.wrong += untold.saturating_sub(self.broken);
        losses
    }
}

/// The sums that must be the same, and how many transactions of each client there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Books {
    sums: BTreeMap<String, i64>,
    clients: BTreeMap<u16, u64>,
}

impl Books {
    /// Takes the answer to [`QUERY`].
    pub fn parse<'a>(lines: impl Iterator<Item = &'a str>) -> anyhow::Result<Self> {
        let mut books = Self::default();
        for line in lines {
            match line.split_whitespace().collect::<Vec<_>>().as_slice() {
                ["client", client, count] => {
                    books.clients.insert(client.parse()?, count.parse()?);
                }
                [table, sum] => {
                    books.sums.insert((*table).to_owned(), sum.parse()?);
                }
                _ => {}
            }
        }
        match books.sums.len() {
            SUMS => Ok(books),
            found => bail!("The books have {found} sums, not {SUMS}"),
        }
    }

    /// How many sums differ from the history's.
    fn unbalanced(&self) -> u64 {
        let right = self.sums.get("history");
        self.sums.values().filter(|sum| Some(*sum) != right).count() as u64
    }
}

const SUMS: usize = 4;
/// The files that pgbench leaves.
const LOG: &str = "pgbench-log";
const SAID: &str = "pgbench.out";
const PROGRESS: &str = "pgbench.err";
const BUSY_TIME: Duration = Duration::from_secs(120);
const END_TIME: Duration = Duration::from_secs(240);

#[cfg(test)]
mod tests {
    use super::*;

    const LOGGED: &str = "0 0 900 0 100 0\n1 0 900 0 100 500000\n0 1 900 0 103 0\n1 1 900 0 104 0\n";
    const BALANCED: &str = "accounts 7\ntellers 7\nbranches 7\nhistory 7\nclient 0 2\nclient 1 2\n";

    fn history() -> History {
        let mut history = History {
            broken: 0,
            stories: Vec::new(),
            transactions: Vec::new(),
        };
        history.read(LOGGED).unwrap();
        history
    }

    fn books(text: &str) -> Books {
        Books::parse(text.lines()).unwrap()
    }

    #[test]
    fn books_with_all_that_clients_were_told_are_right() {
        assert_eq!(history().audit(&books(BALANCED)), Losses::default());
    }

    #[test]
    fn a_transaction_without_a_row_is_lost() {
        let short = BALANCED.replace("client 1 2", "client 1 1");
        assert_eq!(history().audit(&books(&short)), Losses { lost: 1, wrong: 0 });
    }

    #[test]
    fn a_row_that_nobody_was_told_of_is_wrong_unless_a_connection_broke() {
        let long = BALANCED.replace("client 1 2", "client 1 3");
        assert_eq!(history().audit(&books(&long)), Losses { lost: 0, wrong: 1 });
        let broken = History {
            broken: 1,
            ..history()
        };
        assert_eq!(broken.audit(&books(&long)), Losses::default());
    }

    #[test]
    fn sums_that_differ_are_wrong_and_missing_ones_are_an_error() {
        let torn = BALANCED.replace("tellers 7", "tellers 8");
        assert_eq!(history().audit(&books(&torn)), Losses { lost: 0, wrong: 1 });
        assert!(Books::parse("accounts 7".lines()).is_err());
    }

    #[test]
    fn the_outage_is_the_longest_wait_of_any_client() {
        let (before, all) = history().longest_gaps(Duration::from_millis(103_500));
        assert_eq!(
            (before, all),
            (Duration::from_secs(3), Duration::from_millis(3500))
        );
        assert_eq!(history().around(Duration::from_millis(103_500)), (3, 1));
    }
}
