//! The xtask door: every suite and chore that is more than `cargo test`. A thin dispatcher; each does its work elsewhere.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::builder::RangedU64ValueParser;
use clap::{Parser, Subcommand, value_parser};
use lockstep_tests::{everyday, faults, fuzz, kill_points, lab, mutants, nightly, qemu, seeds, sim};

/// Suites and chores of the Lockstep workspace
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run every test of the workspace and tell the sum; as root on Debian, get first what they call
    Test {
        /// For cargo test
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Boot a stock Debian kernel under QEMU with our device processes as plain vhost-user back-ends
    QemuPlain {
        /// Get QEMU, busybox and the kernel from Debian first where they are missing (as root)
        #[arg(long)]
        install: bool,
    },
    /// Protect a guest on two emulated hosts with a real KVM, and let one die, or be far away, or do nothing
    Lab(lab::LabArgs),
    /// Play the demo with many seeds: no client may notice, and no outage may last 500 ms
    Seeds {
        /// How many seeds, from 1 on
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = value_parser!(u64).range(1..))]
        runs: u64,
        /// Print one JSON object as the last line
        #[arg(long)]
        json: bool,
    },
    /// Run the protocol's own machines through simulated worlds in which everything goes wrong
    Sim {
        /// How many worlds
        #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = value_parser!(u64).range(1..))]
        seeds: u64,
        /// The first world's seed
        #[arg(long, value_name = "S", default_value_t = 1)]
        from: u64,
        /// Tell the story of one seed instead
        #[arg(long, value_name = "SEED", conflicts_with = "seeds")]
        tell: Option<u64>,
        /// Print one JSON object as the last line
        #[arg(long)]
        json: bool,
    },
    /// Feed what peers, guests, device processes and files could say to libFuzzer
    Fuzz {
        /// Only the targets with this in their name
        #[arg(long, value_name = "WORD", default_value = "")]
        only: String,
        /// How long each of them runs
        #[arg(long, value_name = "N", default_value_t = 60, value_parser = value_parser!(u64).range(1..))]
        seconds: u64,
        /// How many run side by side
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
        jobs: usize,
        /// Print one JSON object as the last line
        #[arg(long)]
        json: bool,
    },
    /// Explore every order in which few things can happen to a pair with a short log
    Model {
        /// More of everything: some minutes
        #[arg(long)]
        deep: bool,
        /// Print one JSON object as the last line
        #[arg(long)]
        json: bool,
    },
    /// Plant known bugs in copies of the protocol; the simulator or the model has to find each of them
    MutantsProtocol {
        /// Only the bugs with this in their name
        #[arg(long, value_name = "WORD", default_value = "")]
        only: String,
        /// Print one JSON object as the last line
        #[arg(long)]
        json: bool,
    },
    /// Run simulator, model, planted bugs and fuzzer in turn for as long as there is time
    Nightly {
        /// How long
        #[arg(long, value_name = "N", default_value_t = 480, value_parser = value_parser!(u64).range(1..))]
        minutes: u64,
        /// Print one JSON object as the last line
        #[arg(long)]
        json: bool,
    },
    /// Let the primary die at every k-th record of its log; each time no client may notice
    KillPoints {
        /// How many records to die at
        #[arg(long, value_name = "N", default_value_t = 200, value_parser = value_parser!(u64).range(1..))]
        points: u64,
        /// Which workload
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
        /// How the hosts have the disk; each own image is booted alone in the end
        #[arg(long, value_enum, default_value_t = kill_points::Disk::Shared)]
        disk: kill_points::Disk,
        /// Print one JSON object as the last line
        #[arg(long)]
        json: bool,
    },
    /// Let one fault after the other strike real programs; what clients saw must be one server's doing
    Faults {
        /// How many faults
        #[arg(long, value_name = "N", default_value_t = 500, value_parser = value_parser!(u32).range(1..))]
        faults: u32,
        /// What happens, and when; a life that went wrong is told again by its own seed
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
        /// Print one JSON object as the last line
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let done = match Args::parse().task {
        Task::Test { arguments } => everyday::run(&arguments),
        Task::QemuPlain { install } => qemu::suite::run(install),
        Task::Lab(args) => lab::run(&args),
        Task::Seeds { runs, json } => seeds::run(runs, json),
        Task::Sim { tell: Some(seed), .. } => sim::suite::tell(seed),
        Task::Sim {
            seeds, from, json, ..
        } => sim::suite::run(from, seeds, json),
        Task::Fuzz {
            only,
            seconds,
            jobs,
            json,
        } => fuzz::suite::run(&only, seconds, jobs, json),
        Task::Nightly { minutes, json } => nightly::run(minutes, json),
        Task::Model { deep, json } => sim::suite::model(deep, json),
        Task::MutantsProtocol { only, json } => mutants::run(&only, json),
        Task::KillPoints {
            points,
            seed,
            disk,
            json,
        } => kill_points::run(points, seed, disk, json),
        Task::Faults { faults, seed, json } => faults::run(faults, seed, json),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks_for_something(words: &str) -> bool {
        Args::try_parse_from(words.split(' ')).is_ok()
    }

    #[test]
    fn a_suite_that_is_to_do_nothing_is_refused_rather_than_passed() {
        assert!(!asks_for_something("xtask seeds --runs 0"));
        assert!(!asks_for_something("xtask sim --seeds 0"));
        assert!(!asks_for_something("xtask fuzz --seconds 0"));
        assert!(!asks_for_something("xtask fuzz --jobs 0"));
        assert!(!asks_for_something("xtask nightly --minutes 0"));
        assert!(!asks_for_something("xtask kill-points --points 0"));
        assert!(!asks_for_something("xtask faults --faults 0"));
        assert!(!asks_for_something("xtask lab failover --runs 0"));
    }

    #[test]
    fn a_suite_that_is_to_do_one_thing_is_not() {
        assert!(asks_for_something("xtask seeds --runs 1"));
        assert!(asks_for_something("xtask sim --seeds 1"));
        assert!(asks_for_something("xtask fuzz --seconds 1 --jobs 1"));
        assert!(asks_for_something("xtask nightly --minutes 1"));
        assert!(asks_for_something("xtask kill-points --points 1"));
        assert!(asks_for_something("xtask faults --faults 1"));
        assert!(asks_for_something("xtask lab failover --runs 1"));
    }
}
