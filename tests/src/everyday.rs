//! What `cargo xtask test` does: gets from Debian what the tests call (as root, where it is missing), runs every test of
//! the workspace, and ends with their sum. Called by the xtask door; the tests themselves are cargo's business.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::qemu::packages::find_program;

/// Programs that the tests call and that a fresh Debian may lack, and the package each is in.
const TOOLS: [(&str, &str); 3] = [
    ("redis-cli", "redis-tools"),
    ("redis-benchmark", "redis-tools"),
    ("git", "git"),
];

/// Runs every test; `arguments` go to `cargo test`.
pub fn run(arguments: &[String]) -> anyhow::Result<()> {
    install_tools()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut tests = Command::new(cargo)
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .context("Cannot run cargo")?;
    let mut sum = Sum::default();
    let said = tests.stdout.take().context("The output of cargo is not ours")?;
    for line in BufReader::new(said).lines() {
        let line = line.context("Cannot read what the tests say")?;
        sum.add(&line);
        println!("{line}");
    }
    let status = tests.wait().context("Cannot wait for cargo")?;
    println!("\n{} passed, {} failed", sum.passed, sum.failed);
    ensure!(status.success(), "Not every test passed");
    Ok(())
}

/// As root on Debian, gets what is missing; others are told, and their tests fail with a sentence.
fn install_tools() -> anyhow::Result<()> {
    let missing: Vec<_> = TOOLS
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() || find_program("apt-get").is_none() {
        eprintln!(
            "Missing: {missing:?}; only root on Debian can get them here, and tests that need them will fail"
        );
        return Ok(());
    }
    let install = ["install", "--yes", "--quiet", "--no-install-recommends"];
    for words in [&["update", "--quiet"][..], &[&install[..], &missing].concat()] {
        let status = Command::new("apt-get")
            .args(words)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .status()
            .context("Cannot run apt-get")?;
        ensure!(status.success(), "apt-get {} failed: {status}", words.join(" "));
    }
    Ok(())
}

/// How many tests passed and failed, in all suites together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    passed: u64,
    failed: u64,
}

impl Sum {
    /// Adds what a suite says at its end, as in `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        let counts = result.split("; ").filter_map(|part| {
            let mut words = part.rsplit(' ');
            let (what, count) = (words.next()?, words.next()?);
            Some((what, count.parse::<u64>().ok()?))
        });
        for (what, count) in counts {
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_add_up_and_other_lines_do_not_count() {
        let mut sum = Sum::default();
        sum.add(
            "test result: ok. 17 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.59s",
        );
        sum.add("test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out");
        sum.add("test a::passed ... ok");
        assert_eq!(
            sum,
            Sum {
                passed: 19,
                failed: 3
            }
        );
    }
}
