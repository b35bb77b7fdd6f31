//! The hard story of the demo: a pair that is never left in peace. One fault after the other strikes it while clients ask,
//! and after each it has to be whole again: one host live, the other its backup.
//!
//! `cargo xtask faults` tells it through [`campaign`] and judges what the clients wrote down; nothing of it is in the
//! `lockstep` program. Read `fault` for what can happen, `pair` for who lives, `clients` for who watches.

mod clients;
mod fault;
pub mod history;
mod pair;
mod small_disk;
mod witness;

use std::fs;
use std::path::PathBuf;
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
    /// What struck it, in order.
    pub faults: Vec<String>,
    /// What the clients asked and were told.
    pub operations: Vec<Operation>,
    /// Connections that broke although a server that never fails would have kept them.
    pub broken: u64,
    /// Times at which two hosts were seen talking to the outside.
    pub double_life: u64,
    /// The longest that a client waited.
    pub longest_wait: Duration,
    /// Why it ended early, if it did; its logs are kept then.
    pub failed: Option<String>,
}

/// Plays lives until there were enough faults; `hear` is told of each. Must be called before this process has a second
/// thread.
///
/// # Errors
/// When nothing can be played here at all. A life that goes wrong is told, not an error.
pub fn campaign(wish: &Wish, mut hear: impl FnMut(Life) -> anyhow::Result<()>) -> anyhow::Result<()> {
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
            let life = live(wish, seed, faults, network.clone()).await?;
            left -= faults;
            hear(life)?;
        }
        Ok(())
    })
}

/// One life: a VM, its clients, and `faults` faults.
async fn live(wish: &Wish, seed: u64, faults: u32, network: Network) -> anyhow::Result<Life> {
    let mut dice = SmallRng::seed_from_u64(seed);
    let dir = wish.logs.join(format!("life-{seed}"));
    let kept = small_disk::make(&dir)?;
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
        keep: Some(dir.clone()),
        verbose: false,
    };
    let mut world = World::of(wish.lockstep.clone(), &wanted, network).await?;
    let mut pair = Pair::start(&mut world).await?;
    let witness = Witness::start(&world);
    let clients = Clients::start(GUEST, seed).await?;
    let mut told = Vec::new();
    let mut failed = None;
    for number in 0..faults {
        tokio::time::sleep(Duration::from_millis(dice.random_range(CALM_MS))).await;
        // A mirrored disk that is full here alone is no fault of the VM: that host leaves, and one more would be too many.
        let may_end_writing = number + 1 == faults && disk == Disk::Shared;
        let fault = Fault::pick(&mut dice, arbiter, may_end_writing);
        told.push(fault.to_string());
        if let Err(error) = suffer(&fault, &mut world, &mut pair, &clients).await {
            failed = Some(format!("{fault}: {error:#}"));
            break;
        }
    }
    let seen = clients.stop(GUEST).await;
    let double_life = witness.stop().await;
    drop((pair, world));
    if failed.is_none() && seen.broken == 0 && double_life == 0 {
        drop(kept);
        fs::remove_dir_all(&dir).with_context(|| format!("Cannot remove {}", dir.display()))?;
    } else {
        kept.keep_logs()?;
    }
    Ok(Life {
        seed,
        disk,
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
