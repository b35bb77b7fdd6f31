//! A program that executes `rdtsc` in the guest's user space, and the connection on which it tells what it read. The
//! program remembers how often it was asked; whoever takes the guest over must remember the same, and no counter may have
//! gone back.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::wires::GUEST;

/// Where it listens in the guest.
pub const PORT: u16 = 7002;
/// So long may an answer take. A takeover lies in between, in hosts that are emulated.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// Compiles the program for the guest, with every library that it needs in it.
pub fn compile(program: &Path) -> anyhow::Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/rdtsc.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let compiled = Command::new(rustc)
        .args([
            "--edition",
            "2024",
            "-D",
            "warnings",
            "-C",
            "opt-level=1",
            "-C",
            "strip=symbols",
        ])
        .args(["-C", "target-feature=+crt-static", "-o"])
        .args([program, &source])
        .output()
        .context("Cannot run rustc")?;
    if !compiled.status.success() {
        bail!(
            "rustc failed for {}: {}",
            source.display(),
            String::from_utf8_lossy(&compiled.stderr).trim()
        );
    }
    Ok(())
}

/// A connection to the running program.
#[derive(Debug)]
pub struct Counter {
    stream: BufReader<TcpStream>,
    asked: u64,
    last: u64,
}

impl Counter {
    /// Connects, which starts the program.
    pub fn connect() -> anyhow::Result<Self> {
        let address = SocketAddr::new(GUEST.ip(), PORT);
        let stream = TcpStream::connect_timeout(&address, ANSWER_TIME)
            .with_context(|| format!("Nobody reads the counter at {address}"))?;
        stream.set_read_timeout(Some(ANSWER_TIME))?;
        Ok(Self {
            stream: BufReader::new(stream),
            asked: 0,
            last: 0,
        })
    }

    /// Asks so many times. An error if the program forgot one time, or if the counter does not go on.
    pub fn ask(&mut self, times: u64) -> anyhow::Result<()> {
        for _ in 0..times {
            self.stream.get_mut().write_all(b"\n")?;
            let mut line = String::new();
            self.stream
                .read_line(&mut line)
                .context("The program that reads the counter is silent")?;
            self.note(&line)?;
        }
        Ok(())
    }

    /// How often it was asked.
    pub fn asked(&self) -> u64 {
        self.asked
    }

    fn note(&mut self, line: &str) -> anyhow::Result<()> {
        let mut words = line.split_whitespace().map(str::parse);
        let (Some(Ok(asked)), Some(Ok(count))) = (words.next(), words.next()) else {
            bail!("The program that reads the counter says {line:?}");
        };
        self.asked += 1;
        let expected = self.asked;
        ensure!(
            asked == expected,
            "Asked {expected} times, the program remembers {asked}"
        );
        let last = self.last;
        ensure!(count > last, "The counter stood at {last} and then at {count}");
        self.last = count;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A counter without a program.
    fn counter() -> Counter {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        Counter {
            stream: BufReader::new(stream),
            asked: 0,
            last: 0,
        }
    }

    #[test]
    fn a_program_that_forgets_or_a_counter_that_stands_is_noticed() {
        let mut sane = counter();
        sane.note("1 1000\n").unwrap();
        sane.note("2 1001\n").unwrap();
        assert!(sane.note("3 1001\n").is_err());
        let mut forgetful = counter();
        forgetful.note("1 1000\n").unwrap();
        assert!(forgetful.note("1 2000\n").is_err());
        assert!(counter().note("").is_err());
    }

    #[test]
    fn the_program_compiles_and_counts() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("rdtsc");
        compile(&program).unwrap();
        let mut running = Command::new(&program)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        running.stdin.take().unwrap().write_all(b"\n\n").unwrap();
        let said = running.wait_with_output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        let mut counter = counter();
        for line in said.lines() {
            counter.note(line).unwrap();
        }
        assert_eq!(counter.asked(), 2);
    }
}
