//! `lockstep`: parses the command line, starts the log, hands over to the command and prints why it failed. Nothing is
//! decided here. Standard output carries only what a command was asked for; everything else goes to standard error.
#![forbid(unsafe_code)]

mod args;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use lockstep_protocol::ids::LogOffset;
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Command, LogFormat, RunArgs, StandbyArgs, StartRole};
use lockstep_vmm::config::Config;
use lockstep_vmm::{cli, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.log_format, &cli.command);
    dispatch(cli.command).unwrap_or_else(|error| {
        for cause in error.chain() {
            eprintln!("lockstep: {cause}");
        }
        ExitCode::FAILURE
    })
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run::run(&run_options(args)?),
        Command::Standby(args) => run::run(&standby_options(args)?),
        Command::Status(args) => cli::status::status(
            args.run_dir.as_deref(),
            args.config.as_deref(),
            args.node.as_deref(),
            args.json,
            args.watch,
        ),
        Command::Snapshot(args) => cli::snapshot::snapshot(&args.config, &args.node, &args.to),
        Command::Check(args) => cli::check::check(args.config.as_deref(), args.node.as_deref(), args.json),
        Command::Keys(args) => cli::keys::keys(&args.dir, &args.names, args.force),
        Command::Demo(args) => lockstep_demo::demo(&args),
        Command::Bench(args) => lockstep_demo::bench(&args),
    }
}

fn run_options(args: RunArgs) -> anyhow::Result<run::RunOptions> {
    let config = Config::load(&args.config)?;
    config.node(&args.node)?;
    Ok(run::RunOptions {
        config,
        node: args.node,
        role: match args.role {
            StartRole::Primary => run::StartRole::Primary,
            StartRole::Backup => run::StartRole::Backup,
        },
        alone: args.alone,
        from: args.from,
        die_with_parent: args.die_with_parent,
        die_at_record: args.die_at_record.map(LogOffset::new),
        flip_bit: args.flip_bit,
    })
}

fn standby_options(args: StandbyArgs) -> anyhow::Result<run::RunOptions> {
    let config = Config::load(&args.config)?;
    config.node(&args.node)?;
    Ok(run::RunOptions {
        config,
        node: args.node,
        role: run::StartRole::Spare,
        alone: false,
        from: None,
        die_with_parent: args.die_with_parent,
        die_at_record: None,
        flip_bit: None,
    })
}

/// Log lines go to standard error: a command's standard output is its answer.
fn start_log(format: LogFormat, command: &Command) {
    // A long-running node tells what it does; the one-shot commands speak for themselves.
    let default = if matches!(command, Command::Run(_) | Command::Standby(_)) {
        "info"
    } else {
        ONE_SHOT_LOG
    };
    let filter = EnvFilter::try_from_env("LOCKSTEP_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Json => lines.json().init(),
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).init(),
    }
}

/// The netlink crate warns about every attribute that is newer than itself; the demo has no use for them.
const ONE_SHOT_LOG: &str = "warn,netlink_packet_route=error";
