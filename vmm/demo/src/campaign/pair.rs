//! The two hosts of a campaign, by what they are to each other right now, and how they become a pair again.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::world::World;
use crate::world::config::{NODES, tap};
use crate::world::hosts::Host;
use crate::world::status::Status;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Primary,
    Backup,
}

/// Both hosts. After [`Self::heal`] the primary comes first.
pub(super) struct Pair {
    hosts: [Host; 2],
}

impl Pair {
    /// Starts both and waits until the guest is protected; tells how many starts failed before that.
    ///
    /// A pair may fail to start with nothing wrong: on a busy machine one host can be taken for dead before the guest is
    /// protected, and then it ends with the advice to start it again. What a campaign judges begins later, so that
    /// advice is followed; but each failed start is told, because a fault of ours would look the same.
    pub(super) async fn start(world: &mut World) -> anyhow::Result<(Self, u64)> {
        let mut failed = 0;
        loop {
            match Self::try_to_start(world).await {
                Ok(pair) => return Ok((pair, failed)),
                Err(error) if failed + 1 < STARTS_MAX => {
                    failed += 1;
                    eprintln!("start {failed} of at most {STARTS_MAX} failed: {error:#}");
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn try_to_start(world: &mut World) -> anyhow::Result<Self> {
        let mut backup = world.start(NODES[1], "backup", &[])?;
        let mut primary = world.start(NODES[0], "primary", &[])?;
        world.wait_until_up(&mut primary, Some(&mut backup)).await?;
        Ok(Self {
            hosts: [primary, backup],
        })
    }

    /// One of them.
    pub(super) fn host(&mut self, part: Part) -> &mut Host {
        match part {
            Part::Primary => &mut self.hosts[0],
            Part::Backup => &mut self.hosts[1],
        }
    }

    /// The process id of a device process of one of them.
    pub(super) async fn device(&mut self, part: Part, kind: &str) -> anyhow::Result<i32> {
        let status = self.host(part).status().await.context("A host does not answer")?;
        let device = status.devices.iter().find(|device| device.kind == kind);
        device
            .and_then(|device| device.pid)
            .with_context(|| format!("A host has no {kind} process of its own"))
    }

    /// A host that cannot go on has to end by itself.
    pub(super) async fn await_end(&mut self, part: Part) -> anyhow::Result<()> {
        let deadline = Instant::now() + END_MAX;
        while self.host(part).ended()?.is_none() {
            if Instant::now() > deadline {
                bail!("The host goes on all the same{}", self.host(part).last_words());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Waits until one host is live and the other its backup; a host that ended is started again as a spare. They have to
    /// be so for a while: a loss that nobody has noticed yet is one all the same, and the next fault would be one too many.
    pub(super) async fn heal(&mut self, world: &mut World) -> anyhow::Result<()> {
        let deadline = Instant::now() + WHOLE_MAX;
        let mut whole_since = None;
        loop {
            let mut lives = [None, None];
            for (host, life) in self.hosts.iter_mut().zip(&mut lives) {
                if host.ended()?.is_some() {
                    host.kill();
                    host.reap();
                    *host = world.start_spare(host.name())?;
                }
                *life = host.status().await;
            }
            let taps: Vec<_> = NODES.iter().map(|node| tap(node)).collect();
            let plugged = world.network().plug(&taps).await?;
            if !(plugged && self.is_whole(&lives)) {
                whole_since = None;
            } else if whole_since.get_or_insert_with(Instant::now).elapsed() > NOTICED_AFTER {
                return Ok(());
            }
            if Instant::now() > deadline {
                let words: Vec<_> = self.hosts.iter().map(Host::last_words).collect();
                bail!(
                    "The pair is not whole after {} s: {:?}{}",
                    WHOLE_MAX.as_secs(),
                    lives.map(|life| life.map(|status| status.role)),
                    words.concat()
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether there is a primary with its backup; it is put first then.
    fn is_whole(&mut self, lives: &[Option<Status>; 2]) -> bool {
        let is =
            |number: usize, role: &str| lives[number].as_ref().is_some_and(|status| status.is_ready(role));
        if is(1, "primary") && is(0, "backup") {
            self.hosts.swap(0, 1);
            return true;
        }
        is(0, "primary") && is(1, "backup")
    }
}

/// Longer than any fault lasts, and any start, on a busy machine.
const WHOLE_MAX: Duration = Duration::from_secs(30);
/// How long a host takes to notice that it cannot go on, and to say so.
const END_MAX: Duration = Duration::from_secs(10);
/// Above the time-out of the pair.
const NOTICED_AFTER: Duration = Duration::from_millis(200);
const STARTS_MAX: u64 = 3;
const LOOK: Duration = Duration::from_millis(10);
