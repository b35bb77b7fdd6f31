//! The command line of `lockstep`: what can be typed, and the words of `--help`. Only `main.rs` uses it; what each
//! command then does is in `cli/`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use lockstep_demo::{BenchArgs, DemoArgs};
use lockstep_vmm::ft::flip::Flip;

/// Fault-tolerant virtual machines for Linux/KVM.
///
/// Two hosts run the same VM in lockstep. When the one that talks to the world dies, the other goes on at the same
/// instruction: its clients keep their TCP connections and lose nothing.
///
/// To see it happen on this machine alone: lockstep demo
#[derive(Debug, Parser)]
#[command(name = "lockstep", version, propagate_version = true)]
pub(crate) struct Cli {
    /// How log lines look on standard error; the variable LOCKSTEP_LOG filters them (as in "info,lockstep_vmm=debug")
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// One JSON object a line
    Json,
    /// For people
    Text,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one side of a protected VM
    ///
    /// Starts the VM on this host as primary or backup, together with its device processes, and stays in the foreground.
    /// Start both sides with the same configuration file, in any order; the guest powers on when the backup is there.
    Run(RunArgs),
    /// Be a spare: take in a VM that runs unprotected on the other host, and protect it
    ///
    /// Waits until the other host of the configuration runs the VM alone, for example after a takeover. Then the VM is
    /// copied here while it runs, and this host is its backup, as if it had been there from the start.
    Standby(StandbyArgs),
    /// Show what a running node is doing
    ///
    /// Asks the control socket of a running node. Name the node by its run directory, or by configuration and name.
    Status(StatusArgs),
    /// Write the running VM to a file, to be started from there with `lockstep run --from`
    ///
    /// The node that talks to the outside writes registers, devices and memory in its next window; the guest stands still
    /// meanwhile. What is on the disk is not in the file: a VM that is started from it needs the disk as it is now. So stop
    /// the VM right after, or copy the disk while nothing is written to it.
    Snapshot(SnapshotArgs),
    /// Tell what this host can and cannot do, with a remedy for each failing line
    ///
    /// Looks at KVM, tap devices, namespaces and device processes; with a configuration also at the keys, the disk and
    /// the arbiter it names. Exit status 1 if something that is needed does not work.
    Check(CheckArgs),
    /// Make a certificate and a private key for each name
    ///
    /// Writes DIR/NAME.crt and DIR/NAME.key for each name. A certificate may be read by all, a key by its owner only: copy
    /// every NAME.crt to both hosts, and each NAME.key to the host of that name alone.
    Keys(KeysArgs),
    /// Kill a host under load, here and now, and check that no client noticed
    #[command(after_help = DEMO_HELP)]
    Demo(DemoArgs),
    /// Measure what protection costs: the same guest alone and protected, in turns
    Bench(BenchArgs),
}

/// Arguments of `lockstep run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The configuration file, the same on both hosts
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Which [node.NAME] of the file this host is
    #[arg(long, value_name = "NAME")]
    pub(crate) node: String,
    /// What this side is at the start; a backup becomes primary by itself when the primary dies
    #[arg(long, value_enum)]
    pub(crate) role: StartRole,
    /// Run unprotected, without a peer: claims the term and holds it alone
    #[arg(long)]
    pub(crate) alone: bool,
    /// Start from a file of `lockstep snapshot` instead of powering on; the disk must be of the same moment
    #[arg(long, value_name = "FILE", requires = "alone")]
    pub(crate) from: Option<PathBuf>,
    /// Die when the process that started this one dies
    #[arg(long, hide = true)]
    pub(crate) die_with_parent: bool,
    /// For tests: SIGKILL to the own process group once this record of the log was appended
    #[arg(long, hide = true, value_name = "N")]
    pub(crate) die_at_record: Option<u64>,
    /// For tests: a bit of this backup's machine flips, memory@N or register@N, when N records have entered
    #[arg(long, hide = true, value_name = "PART@N")]
    pub(crate) flip_bit: Option<Flip>,
}

/// What a node is at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StartRole {
    /// Talks to the world
    Primary,
    /// Executes what the primary executed, and says nothing until it must
    Backup,
}

/// Arguments of `lockstep standby`.
#[derive(Debug, Args)]
pub(crate) struct StandbyArgs {
    /// The configuration file, the same on both hosts
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Which [node.NAME] of the file this host is
    #[arg(long, value_name = "NAME")]
    pub(crate) node: String,
    /// Die when the process that started this one dies
    #[arg(long, hide = true)]
    pub(crate) die_with_parent: bool,
}

/// Arguments of `lockstep status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The run directory of the node
    #[arg(long, value_name = "DIR", required_unless_present = "config", conflicts_with_all = ["config", "node"])]
    pub(crate) run_dir: Option<PathBuf>,
    /// The configuration file
    #[arg(long, value_name = "FILE", requires = "node")]
    pub(crate) config: Option<PathBuf>,
    /// Which [node.NAME] of the file
    #[arg(long, value_name = "NAME", requires = "config")]
    pub(crate) node: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Ask again and again until interrupted
    #[arg(long)]
    pub(crate) watch: bool,
}

/// Arguments of `lockstep snapshot`.
#[derive(Debug, Args)]
pub(crate) struct SnapshotArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Which [node.NAME] of the file runs the VM
    #[arg(long, value_name = "NAME")]
    pub(crate) node: String,
    /// Where to write it; replaced if it exists, once the new one is whole
    #[arg(long, value_name = "FILE")]
    pub(crate) to: PathBuf,
}

/// Arguments of `lockstep check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// A configuration file to check as well
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Which [node.NAME] of the file this host is
    #[arg(long, value_name = "NAME", requires = "config")]
    pub(crate) node: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `lockstep keys`.
#[derive(Debug, Args)]
pub(crate) struct KeysArgs {
    /// Where to write them; made if missing
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Replace files that exist already; peers that pinned the old certificate refuse the new one
    #[arg(long)]
    pub(crate) force: bool,
    /// One name for each host, and one for the arbiter if it is a service
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

const DEMO_HELP: &str = "\
Needs nothing prepared: it makes its own network namespace (as an ordinary user too, where user namespaces are
allowed), two hosts as process groups, keys, an arbiter and a shared disk, and removes all of it.

Exit status: 0 if no acknowledged write was lost, no reply was wrong and no connection broke; 1 if one was;
2 if this machine has no usable /dev/kvm.";
