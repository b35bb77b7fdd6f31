//! What happens to the pair, and when. The timeline asks for it, and strikes with it.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::args::DemoArgs;
use crate::world::World;
use crate::world::hosts::Host;

/// What happens to the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL to every process of the primary's host.
    Kill,
    /// The same, but the primary does it to itself at this record of its log.
    KillAtRecord(u64),
    /// SIGKILL to every process of the backup's host.
    KillBackup,
    /// SIGSTOP to all of the primary's, and SIGCONT after [`PAUSE`].
    Pause,
    /// The wire between the hosts is cut, both ways.
    Cut,
}

impl Fault {
    /// What was asked for.
    pub(crate) fn of(args: &DemoArgs) -> Self {
        match args {
            DemoArgs { pause: true, .. } => Self::Pause,
            DemoArgs { cut: true, .. } => Self::Cut,
            DemoArgs {
                kill_backup: true, ..
            } => Self::KillBackup,
            DemoArgs {
                kill_at_record: Some(record),
                ..
            } => Self::KillAtRecord(*record),
            _ => Self::Kill,
        }
    }

    /// When it comes, after the clients started: told, or a moment that the seed picks.
    pub(crate) fn after(args: &DemoArgs) -> Duration {
        let jitter = SmallRng::seed_from_u64(args.seed).random_range(0..=JITTER_MS);
        Duration::from_millis(args.kill_after.unwrap_or(FAULT_AFTER_MS + jitter))
    }

    /// Lets it happen; a primary that kills itself has done so already.
    pub(crate) fn strike(self, world: &World, primary: &mut Host, backup: &mut Host) {
        match self {
            Self::Kill => primary.kill(),
            Self::KillAtRecord(_) => {}
            Self::KillBackup => backup.kill(),
            Self::Pause => primary.stop(),
            Self::Cut => world.cut(),
        }
    }

    /// For the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::KillAtRecord(_) => "kill-at-record",
            Self::KillBackup => "kill-backup",
            Self::Pause => "pause",
            Self::Cut => "cut",
        }
    }

    /// For the time-line.
    pub(crate) fn told(self) -> &'static str {
        match self {
            Self::Kill => "SIGKILL to every process of host a, requests in flight",
            Self::KillAtRecord(_) => "host a killed itself, requests in flight",
            Self::KillBackup => "SIGKILL to every process of host b, requests in flight",
            Self::Pause => "SIGSTOP to every process of host a, requests in flight",
            Self::Cut => "the wire between a and b is cut, requests in flight",
        }
    }
}

/// How long a paused host sleeps.
pub(crate) const PAUSE: Duration = Duration::from_secs(3);
const FAULT_AFTER_MS: u64 = 2000;
const JITTER_MS: u64 = 500;
