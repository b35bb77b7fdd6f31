//! What can be asked of `lockstep demo` and `lockstep bench`. The `lockstep` binary embeds these in its command line.

use std::path::PathBuf;

use clap::builder::ArgPredicate;
use clap::{Args, ValueEnum};

/// Arguments of `lockstep demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// What the VM boots
    #[arg(long, value_enum, default_value_t = Guest::Micro)]
    pub guest: Guest,
    /// When the primary is killed, in ms after the clients started [default: 2000 and up to 500 more, by the seed]
    #[arg(long, value_name = "MS")]
    pub kill_after: Option<u64>,
    /// How long the clients run
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// What the clients do and when the kill comes; the same seed asks the same questions
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// How many TCP connections
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub clients: u16,
    /// Stop the primary for 3 s (SIGSTOP, then SIGCONT) instead of killing it
    #[arg(long, conflicts_with = "cut")]
    pub pause: bool,
    /// Kill the backup instead of the primary
    #[arg(long, conflicts_with_all = ["pause", "cut"])]
    pub kill_backup: bool,
    /// Cut the link between the hosts, both ways, instead of killing the primary
    #[arg(long)]
    pub cut: bool,
    /// Stop the arbiter service at the cut, too, for MS; until it is back no reply may come
    #[arg(long, value_name = "MS", requires = "cut", value_parser = clap::value_parser!(u64).range(500..=8000))]
    pub arbiter_away: Option<u64>,
    /// Who hands out terms: a directory that both hosts share, or a lockstep-arbiter service over it
    #[arg(long, value_enum, default_value_t = Arbiter::File, default_value_if("arbiter_away", ArgPredicate::IsPresent, "quic"))]
    pub arbiter: Arbiter,
    /// How the hosts have the guest's disk
    #[arg(long, value_enum, default_value_t = Disk::Shared)]
    pub disk: Disk,
    /// How many vCPUs the VM has; several run in epochs, each of which goes to the backup as a delta
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub vcpus: u8,
    /// In the end stop the survivor, boot the guest anew from its disk alone, and read every key back once more
    #[arg(long)]
    pub boot_again: bool,
    /// Kill the primary N times, each time after the survivor of the last death has made a new backup of itself;
    /// with mirrored disks the guest is booted from the image of each host in the end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000),
          conflicts_with_all = ["pause", "cut", "kill_backup", "kill_after", "boot_again"])]
    pub rounds: Option<u16>,
    /// For tests: the primary kills its own host at record N of its log
    #[arg(long, hide = true, value_name = "N", conflicts_with_all = ["pause", "cut", "kill_backup", "kill_after"])]
    pub kill_at_record: Option<u64>,
    /// For tests: end so many ms after a host is live again, whatever --seconds says
    #[arg(long, hide = true, value_name = "MS", conflicts_with_all = ["pause", "cut"])]
    pub end_after: Option<u64>,
    /// Print one JSON object as the last line
    #[arg(long)]
    pub json: bool,
    /// Keep configuration, disk and the hosts' logs in DIR
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Show the hosts' own log lines
    #[arg(long)]
    pub verbose: bool,
}

/// Arguments of `lockstep bench`.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// What the VM boots
    #[arg(long, value_enum, default_value_t = Guest::Micro)]
    pub guest: Guest,
    /// How long all measurements take together
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u64).range(4..=3600))]
    pub seconds: u64,
    /// How many TCP connections the throughput parts use; by default enough to keep either side busy
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=128))]
    pub clients: u16,
    /// How many requests each of them has in flight
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub pipeline: u16,
    /// How the hosts have the guest's disk
    #[arg(long, value_enum, default_value_t = Disk::Shared)]
    pub disk: Disk,
    /// How many vCPUs the VM has
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub vcpus: u8,
    /// Which processors of this machine the two hosts have
    #[arg(long, value_enum, default_value_t = Processors::Apart)]
    pub processors: Processors,
    /// How often unprotected and protected take turns
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub rounds: u16,
    /// Print one JSON object as the last line
    #[arg(long)]
    pub json: bool,
    /// Keep configuration, disk and the hosts' logs in DIR
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Show the hosts' own log lines
    #[arg(long)]
    pub verbose: bool,
}

/// What the VM boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Guest {
    /// The key-value server that is embedded in lockstep
    Micro,
}

/// Which processors of this machine the hosts of a bench have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Processors {
    /// The primary has one half, alone and protected, and the clients with it; the backup has the other half: as two
    /// machines, neither of which takes time from the other
    Apart,
    /// Everybody has all of them
    Shared,
}

/// How the hosts have the guest's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Disk {
    /// Both have the same one
    Shared,
    /// Each has an image of its own
    Mirror,
}

impl Disk {
    /// As the configuration, the command line and the reports say it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Mirror => "mirror",
        }
    }
}

/// Who hands out terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arbiter {
    /// A shared directory
    File,
    /// A lockstep-arbiter process
    Quic,
}
