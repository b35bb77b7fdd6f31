//! The hard story of the demo: a pair that is never left in peace. One fault after the other strikes it while clients ask,
//! and after each it has to be whole again: one host live, the other its backup.
//!
//! `cargo xtask faults` tells it through [`campaign`] and judges what the clients wrote down; nothing of it is in the
//! `lockstep` program. Read `fault` for what can happen, `pair` for who lives, `clients` for who watches.

mod clients;
mod doubt;
mod fault;
pub mod history;
mod pair;
mod small_disk;
mod witness;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use self::clients::Clients;
use self::fault::Fault;
use self::history::Operation;
use self::pair::Pair;
use self::witness::Witness;
use crate::args::{Arbiter, Disk};
use crate::stage;
use crate::world::config::GUEST;
use crate::world::namespace::Network;
use crate::world::{self, World};

/// What to play.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The program that the hosts run.
    pub lockstep: PathBuf,
    /// Where the logs of lives that went wrong stay.
    pub logs: PathBuf,
    /// What happens, and when.
    pub seed: u64,
    /// How many faults in all.
    pub faults: u32,
}

/// What one VM went through, from power-on.
#[derive(Clone, Debug)]
pub struct Life {
    /// Tells it again.
    pub seed: u64,
    /// How the hosts had the disk.
    pub disk: Disk,
    /// Starts that failed before there was a pair.
    pub failed_starts: u64,
    /// What struck it, in order.
    pub faults: Vec<Struck>,
    /// What the clients asked and were told.
    pub operations: Vec<Operation>,
    /// Connections that broke although a server that never fails would have kept them.
    pub broken: u64,
    /// Times at which two hosts were seen talking to the outside.
    pub double_life: u64,
    /// The longest that a client waited.
    pub longest_wait: Duration,
    /// What went wrong beside what the operations show.
    pub failed: Option<String>,
}

/// A fault that struck.
#[derive(Clone, Debug)]
pub struct Struck {
    /// Which sort it is, whatever was left to chance.
    pub kind: &'static str,
    /// All of it, as a part of a sentence.
    pub told: String,
}

/// Plays lives until there were enough faults; `hear` is told of each and answers whether it was right. The logs of one that
/// was not are kept. Must be called before this process has a second thread.
///
/// # Errors
/// When nothing can be played here at all. A life that goes wrong is told, not an error.
pub fn campaign(wish: &Wish, mut hear: impl FnMut(&Life) -> bool) -> anyhow::Result<()> {
    small_disk::allow()?;
    stage::play(async {
        let network = Network::new().await?;
        let mut left = wish.faults;
        for number in 0_u64.. {
            if left == 0 {
                break;
            }
            let seed = wish.seed.wrapping_add(number);
            let faults = left.min(FAULTS_IN_A_LIFE);
            left -= faults;
            let dir = wish.logs.join(format!("life-{seed}"));
            let disk = small_disk::make(&dir)?;
            let life = live(wish, &dir, seed, faults, network.clone()).await;
            // Only who judges the history can say that nothing here is worth a look.
            if life.as_ref().is_ok_and(&mut hear) {
                drop(disk);
                fs::remove_dir_all(&dir).with_context(|| format!("Cannot remove {}", dir.display()))?;
            } else {
                let kept = disk.keep_logs();
                life?;
                kept?;
            }
        }
        Ok(())
    })
}

/// One life: a VM, its clients, and `faults` faults. Whatever it writes is in `dir`.
async fn live(wish: &Wish, dir: &Path, seed: u64, faults: u32, network: Network) -> anyhow::Result<Life> {
    let mut dice = SmallRng::seed_from_u64(seed);
    let arbiter = if dice.random() {
        Arbiter::Quic
    } else {
        Arbiter::File
    };
    let disk = if dice.random() { Disk::Shared } else { Disk::Mirror };
    let wanted = world::Wish {
        arbiter,
        disk,
        vcpus: 1,
        relay: true,
        keep: Some(dir.into()),
        verbose: false,
    };
    let mut world = World::of(wish.lockstep.clone(), &wanted, network).await?;
    let (mut pair, failed_starts) = Pair::start(&mut world).await?;
    let witness = Witness::start(&world);
    let clients = Clients::start(GUEST, seed).await?;
    let mut told = Vec::new();
    let mut failed = None;
    for number in 0..faults {
        tokio::time::sleep(Duration::from_millis(dice.random_range(CALM_MS))).await;
        // A mirrored disk that is full here alone is no fault of the VM: that host leaves, and one more would be too many.
        let may_end_writing = number + 1 == faults && disk == Disk::Shared;
        let fault = Fault::pick(&mut dice, arbiter, may_end_writing);
        told.push(Struck {
            kind: fault.kind(),
            told: fault.to_string(),
        });
        if let Err(error) = suffer(&fault, &mut world, &mut pair, &clients).await {
            failed = Some(format!("{fault}: {error:#}"));
            break;
        }
    }
    let seen = clients.stop(GUEST).await;
    let double_life = witness.stop().await;
    Ok(Life {
        seed,
        disk,
        failed_starts,
        faults: told,
        operations: seen.operations,
        broken: seen.broken,
        double_life,
        longest_wait: seen.longest_wait,
        failed: failed.or(seen.failed),
    })
}

/// One fault, from its first moment until the pair is whole again.
async fn suffer(fault: &Fault, world: &mut World, pair: &mut Pair, clients: &Clients) -> anyhow::Result<()> {
    if fault.ends_writing() {
        clients.forgive();
    }
    fault.strike(world, pair).await?;
    fault.lift(world, pair).await?;
    pair.heal(world).await
}

/// How many faults one VM goes through: enough to have many pairings behind it, few enough to tell the story.
const FAULTS_IN_A_LIFE: u32 = 10;
/// How long the pair is left in peace before the next fault.
const CALM_MS: std::ops::RangeInclusive<u64> = 50..=400;
