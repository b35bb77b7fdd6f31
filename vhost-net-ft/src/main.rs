//! The process: reads the command line, sets up logs, serves, and says in one sentence why it could not.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use vhost_net_ft::args::Args;
use vhost_net_ft::sentence::sentence;
use vhost_net_ft::serve::serve;

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .init();
    die_whole();
    match serve(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vhost-net-ft: {}", sentence(&error));
            ExitCode::FAILURE
        }
    }
}

/// A thread that panics takes the process with it: half a device would be silent instead of gone.
fn die_whole() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}
