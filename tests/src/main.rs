//! The xtask door: every suite and chore that is more than `cargo test`. A thin dispatcher; each does its work elsewhere.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lockstep_tests::qemu;

/// Suites and chores of the Lockstep workspace
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Boot a stock Debian kernel under QEMU with our device processes as plain vhost-user back-ends
    QemuPlain {
        /// Get QEMU, busybox and the kernel from Debian first where they are missing (as root)
        #[arg(long)]
        install: bool,
    },
}

fn main() -> ExitCode {
    let done = match Args::parse().task {
        Task::QemuPlain { install } => qemu::suite::run(install),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
