//! Processor time that a part of the bench took, apart for clients and each host: where both hosts share one machine's
//! processors, this tells what two machines would not share.

use std::ops::AddAssign;
use std::time::Duration;

use anyhow::Context;
use procfs::process::{Process, all_processes};

use crate::world::hosts::Host;

/// Processor time of everybody, since each of them started.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu {
    pub(crate) clients: Duration,
    pub(crate) primary: Duration,
    pub(crate) backup: Duration,
}

impl Cpu {
    /// As of now. The clients are this process; a host is its process group.
    pub(crate) fn now(primary: &Host, backup: Option<&Host>) -> anyhow::Result<Self> {
        let own = Process::myself().and_then(|own| own.stat());
        let mut all = Self {
            clients: used(&own.context("Cannot read what this process used")?),
            ..Self::default()
        };
        let (first, second) = (primary.group(), backup.map(Host::group));
        for process in all_processes().context("Cannot list processes")? {
            // A process that ended meanwhile is none of ours.
            let Ok(stat) = process.and_then(|process| process.stat()) else {
                continue;
            };
            if stat.pgrp == first {
                all.primary += used(&stat);
            } else if Some(stat.pgrp) == second {
                all.backup += used(&stat);
            }
        }
        Ok(all)
    }

    /// What was used since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            clients: self.clients.saturating_sub(earlier.clients),
            primary: self.primary.saturating_sub(earlier.primary),
            backup: self.backup.saturating_sub(earlier.backup),
        }
    }
}

impl AddAssign for Cpu {
    fn add_assign(&mut self, more: Self) {
        self.clients += more.clients;
        self.primary += more.primary;
        self.backup += more.backup;
    }
}

fn used(stat: &procfs::process::Stat) -> Duration {
    Duration::from_secs_f64((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64)
}
