//! `lockstep-arbiter`: the arbiter's service and a few tools for the directory that terms are kept in.
//!
//! It parses, calls the library and prints; it decides nothing.

#![forbid(unsafe_code)]

mod args;

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use lockstep_arbiter::register::{Tenure, VmName};
use lockstep_arbiter::server::Server;
use lockstep_arbiter::server::config::ServiceConfig;
use lockstep_arbiter::store::Store;
use lockstep_arbiter::store::file::FileStore;
use lockstep_protocol::ids::{Holder, Incarnation, Term};
use lockstep_protocol::takeover::Verdict;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::EnvFilter;

use args::{Args, Command};

/// A claim was answered, but not as wished.
const REFUSED: u8 = 3;

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .init();
    match run(args.command) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("lockstep-arbiter: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Serve { config } => serve(&config),
        Command::Show { dir, vm: None, json } => show_all(&FileStore::open(&dir)?, json),
        Command::Show {
            dir,
            vm: Some(vm),
            json,
        } => show_one(&FileStore::open(&dir)?, &vm, json),
        Command::Check { dir } => check(&dir),
        Command::Claim {
            dir,
            vm,
            expected,
            node,
            incarnation,
        } => {
            let incarnation = incarnation.unwrap_or_else(|| Incarnation::new(rand::random()));
            claim(
                &FileStore::open(&dir)?,
                &vm,
                Term::new(expected),
                &Holder { node, incarnation },
            )
        }
    }
}

fn serve(config: &Path) -> Result<ExitCode> {
    let ServiceConfig {
        listen,
        dir,
        identity,
        clients,
    } = ServiceConfig::load(config)?;
    let store = FileStore::open(&dir)?;
    store.try_out()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(async {
        let fingerprint = identity.fingerprint();
        let server = Server::bind(listen, identity, clients, store)?;
        let mut terminate = signal(SignalKind::terminate()).context("Cannot wait for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("Cannot wait for SIGINT")?;
        let address = server.local_address()?;
        info!(%address, dir = %dir.display(), %fingerprint, "The arbiter answers");
        // One line for whoever started it: the port may have been chosen by the system.
        writeln!(io::stdout(), "listening on {address}").context("Cannot write to standard output")?;
        server
            .run(async {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            })
            .await;
        info!("The arbiter ends");
        Ok(ExitCode::SUCCESS)
    });
    // Whatever is at the store still hangs on its disk, perhaps for ever; it may be killed at any instruction.
    runtime.shutdown_background();
    ended
}

fn show_all(store: &FileStore, json: bool) -> Result<ExitCode> {
    let mut out = io::stdout().lock();
    for vm in store.vms()? {
        if let Some(tenure) = store.read(&vm)? {
            print(&mut out, &vm, &tenure, json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show_one(store: &FileStore, vm: &VmName, json: bool) -> Result<ExitCode> {
    let history = store.history(vm)?;
    anyhow::ensure!(!history.is_empty(), "The VM {vm} never had a term here");
    let mut out = io::stdout().lock();
    for tenure in &history {
        print(&mut out, vm, tenure, json)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(out: &mut impl Write, vm: &VmName, tenure: &Tenure, json: bool) -> io::Result<()> {
    let Tenure { term, holder } = tenure;
    if json {
        return writeln!(out, "{}", json!({ "vm": vm, "term": term, "holder": holder }));
    }
    writeln!(out, "{vm}  term {term}  {holder}")
}

fn check(dir: &Path) -> Result<ExitCode> {
    FileStore::open(dir)?.try_out()?;
    println!(
        "{} can keep terms: files, syncing and hard links work. Whether both hosts see the same directory, \
         only a look from the other host can tell.",
        dir.display()
    );
    Ok(ExitCode::SUCCESS)
}

fn claim(store: &FileStore, vm: &VmName, expected: Term, me: &Holder) -> Result<ExitCode> {
    match store.claim(vm, expected, me)? {
        Verdict::Granted { term } => {
            println!("granted term {term} to {me}");
            Ok(ExitCode::SUCCESS)
        }
        Verdict::Refused { term, holder } => {
            println!("refused: term {term} is held by {holder}");
            Ok(ExitCode::from(REFUSED))
        }
    }
}
