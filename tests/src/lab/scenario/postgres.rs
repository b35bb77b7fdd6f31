//! A fault under a PostgreSQL guest: pgbench outside goes through it, and in the end the books must balance and have every
//! transaction that a client was told of, in the running guest and once more on what its disk holds after a power cut.

use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use lockstep_demo::outside::Seen;

use super::{Fault, OnDisk, Order, deltas, fsck, late};
use crate::lab::config::Guest;
use crate::lab::pgbench::{self, History, Pgbench};
use crate::lab::postgres_image;
use crate::lab::wires::NODES;
use crate::lab::world::World;

/// Lets pgbench talk to a protected guest, does something to its hosts after `delay`, and in the end cuts the power of
/// whoever is left.
pub(super) fn survive(
    world: &mut World,
    order: &Order,
    seed: u64,
    delay: Duration,
    fault: impl FnOnce(&mut World) -> anyhow::Result<()>,
) -> anyhow::Result<Fault> {
    let server = Guest::Postgres.server();
    let mut clients = Pgbench::start(server, order.clients, seed, BUSY, world.folder())?;
    clients.wait_until_busy().with_context(|| world.last_words())?;
    // The moment is the scenario's to choose, so this waits for a time and not for an event.
    std::thread::sleep(delay);
    let deltas = deltas(world)?;
    let moment = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    fault(world)?;
    let history = clients.finish().with_context(|| world.last_words())?;
    let (before, after) = history.around(moment);
    if after < u64::from(order.clients) {
        bail!(
            "The guest did only {after} transactions after the fault. {}",
            world.last_words()
        );
    }
    let losses = history.audit(&pgbench::ask_books(server)?);
    let survivor = world.live()?;
    let status = world.status(survivor)?;
    for node in NODES {
        world.host_mut(node).kill();
    }
    let (gap_before, longest_gap) = history.longest_gaps(moment);
    let History { broken, stories, .. } = history.clone();
    let kernel = &order.setting.kernel;
    let initramfs = order.setting.initramfs.as_deref();
    let initramfs = initramfs.context("A Debian guest starts from an initramfs")?;
    let errors = fsck(world)?;
    let books = postgres_image::read_books(&world.disk(survivor), initramfs, kernel)?;
    Ok(Fault {
        acked_before: before,
        gap_before,
        seen: Seen {
            acked: before + after,
            wrong: 0,
            broken,
            longest_gap,
            stories,
        },
        losses,
        survivor,
        takeover: status["takeover"].clone(),
        late: late(&status),
        deltas,
        on_disk: Some(OnDisk {
            fsck: errors,
            losses: history.audit(&books),
        }),
        user_rdtsc: 0,
    })
}

/// How long the clients go on: through the fault and for some time after it.
const BUSY: Duration = Duration::from_secs(60);
