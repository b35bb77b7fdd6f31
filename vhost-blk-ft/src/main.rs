//! The executable: arguments, logging, one sentence when it cannot go on.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;
use vhost_blk_ft::args::Args;
use vhost_blk_ft::serve;

fn main() -> ExitCode {
    let args = Args::read();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    end_on_panic();
    match serve::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vhost-blk-ft: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A process that lost a thread must not look alive: its VMM would wait for it.
fn end_on_panic() {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |what| {
        say(what);
        std::process::abort();
    }));
}
