//! The command line of `lockstep-arbiter`, and the text that a stranger reads first.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use lockstep_arbiter::register::VmName;
use lockstep_protocol::ids::{Incarnation, NodeName};

/// Hands out the terms of Lockstep VMs, each once, so that a VM never has two primaries
#[derive(Debug, Parser)]
#[command(version, about, long_about = LONG, after_help = EXIT)]
pub(crate) struct Args {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

const LONG: &str = "\
Hands out the terms of Lockstep VMs, each once, so that a VM never has two primaries.

When one host of a pair loses the other, it claims the next term here. The first one gets it and lives; the other
one halts. Terms are kept as small text files in a directory, one for each term, and are never changed or removed.

Two hosts that share a disk (NFS, GFS2, OCFS2) need no service: give both the same directory as
  [arbiter]
  kind = \"file\"
  dir = \"/shared/lockstep\"
Otherwise run `lockstep-arbiter serve` on a third host.";

const EXIT: &str =
    "Exit status: 0 done, 1 failed (one sentence on standard error), 2 wrong usage, 3 a claim was refused.";

const SERVE: &str = "\
Answers claims over QUIC; both sides show certificates, and only the named ones are accepted.

The configuration (paths are relative to the file):
  listen = \"0.0.0.0:7443\"          # UDP
  dir = \"/var/lib/lockstep-arbiter\" # must exist, on a disk that survives a power cut
  certificate = \"arbiter.crt\"
  key = \"arbiter.key\"
  [client.a]                        # node a may claim in its own name
  certificate = \"a.crt\"
  [client.b]
  certificate = \"b.crt\"
  vms = [\"shop\"]                    # optional: about these VMs only

`lockstep keys` makes the certificates. An answer leaves only after it was synced to the disk, so the service may be
killed at any time. SIGTERM and SIGINT end it after the answers that are under way.";

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Answer claims over QUIC
    #[command(long_about = SERVE)]
    Serve {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Print the newest term of every VM, or every term of one VM
    Show {
        /// The directory that the terms are kept in
        dir: PathBuf,
        /// Which VM
        vm: Option<VmName>,
        /// Print one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Try whether a directory can keep terms: writing, syncing, hard links
    Check {
        /// The directory
        dir: PathBuf,
    },
    /// Claim a term by hand; a host that is not the holder can then never go live with the old one
    Claim {
        /// The directory that the terms are kept in
        dir: PathBuf,
        /// Which VM
        vm: VmName,
        /// The newest term, as `show` prints it; 0 before the first
        #[arg(long, value_name = "TERM")]
        expected: u64,
        /// In whose name
        #[arg(long)]
        node: NodeName,
        /// Which start of the node, as 32 hexadecimal digits; a random one if not given
        #[arg(long, value_name = "HEX")]
        incarnation: Option<Incarnation>,
    },
}
