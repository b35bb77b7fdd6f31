//! `lab power`: the guest switches itself off, and both nodes end well. Started again it restarts, told so at its console,
//! stays protected, and is taken over in its new life. Its clock and its disk go through all of that.

use std::time::{Duration, Instant};

use anyhow::bail;
use lockstep_demo::outside::{self, Memory, Outside};

use super::{Order, until_acked};
use crate::lab::config::Guest;
use crate::lab::guest_image::AGAIN;
use crate::lab::report::{Report, ms};
use crate::lab::wires::{GUEST, Node};
use crate::lab::world::{Protection, World};
use crate::qemu::processes::eventually;

/// Tells the story once.
pub fn play(order: &Order) -> anyhow::Result<Report> {
    if order.setting.guest != Guest::Debian {
        bail!("Only the Debian guest restarts: leave --guest out");
    }
    let mut world = World::build(&order.setting, "power")?;
    world.power_on(Protection::Pair)?;
    let memory = talk(order)?;
    outside::shut_down(GUEST)?;
    let ends = [
        wait_for_end(&mut world, Node::A)?,
        wait_for_end(&mut world, Node::B)?,
    ];

    world.power_on(Protection::Pair)?;
    let after_off = memory.read_back(GUEST)?;
    let (restart, times) = restart(&mut world)?;
    let after_restart = memory.read_back(GUEST)?;
    let protected = world.status(Node::B)?["role"] == "backup" && world.status(Node::A)?["role"] == "primary";

    world.host_mut(Node::A).kill();
    eventually("the backup to take over", TAKEOVER_TIME, || {
        Ok((world.status(Node::B)?["role"] == "alone").then_some(()))
    })?;
    let taken_over = outside::time(GUEST)?;
    let after_takeover = memory.read_back(GUEST)?;
    let offset = clock_offset(&world, Node::B)?;
    outside::shut_down(GUEST)?;
    let last_end = wait_for_end(&mut world, Node::B)?;

    let mut report = order.report("power");
    report.figure(
        "exit_status",
        "Exit status of a, b, and b at last",
        vec![ends[0], ends[1], last_end],
    );
    report.figure("restart_ms", "Restart until the server answered, ms", ms(restart));
    report.figure(
        "clock_offset_ms",
        "The guest\'s clock against its last host\'s, ms",
        offset,
    );
    let losses = [after_off, after_restart, after_takeover];
    let lost: u64 = losses.iter().map(|losses| losses.lost + losses.wrong).sum();
    report.figure("lost_ops", "Acknowledged writes lost", lost);
    report.must(lost == 0, format!("{lost} acknowledged writes are lost"));
    let well = ends.into_iter().chain([last_end]).all(|status| status == 0);
    report.must(well, "A node did not end well when its guest switched itself off");
    report.must(protected, "The guest is not protected after its restart");
    let forward = times.windows(2).all(|pair| pair[0] < pair[1]) && times.last() < Some(&taken_over);
    report.must(
        forward,
        format!("The guest\'s clock ran backwards: {times:?}, {taken_over:?}"),
    );
    report.must(
        offset.abs() < OFFSET_MAX_MS,
        format!("The guest\'s clock is {offset} ms off its host\'s"),
    );
    Ok(report)
}

/// Some writes whose replies are remembered.
fn talk(order: &Order) -> anyhow::Result<Memory> {
    let clients = Outside::start(GUEST, order.clients, order.seed)?;
    let talked = until_acked(&clients, REPLIES);
    let memory = clients.stop()?;
    talked?;
    Ok(memory)
}

/// Lets the guest restart. Says how long that took, and what its clock said before and after.
fn restart(world: &mut World) -> anyhow::Result<(Duration, Vec<Duration>)> {
    let before = outside::time(GUEST)?;
    world.type_at(Node::A, AGAIN)?;
    let start = Instant::now();
    outside::shut_down(GUEST)?;
    eventually("the guest to restart", Guest::Debian.boot_time(), || {
        world.host_mut(Node::A).check()?;
        if let Some(status) = world.ended(Node::A)? {
            bail!("Node a ended with {status}. {}", world.last_words());
        }
        Ok(outside::answers(GUEST)?.then_some(()))
    })?;
    Ok((start.elapsed(), vec![before, outside::time(GUEST)?]))
}

fn wait_for_end(world: &mut World, node: Node) -> anyhow::Result<i32> {
    eventually("the guest to switch itself off", OFF_TIME, || {
        world.host_mut(node).check()?;
        world.ended(node)
    })
}

/// How far the guest's clock is from its host's, in ms. Asking takes some.
fn clock_offset(world: &World, node: Node) -> anyhow::Result<i64> {
    let host = world.clock(node)?;
    let guest = outside::time(GUEST)?;
    let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    Ok(ms(guest) - ms(host))
}

const REPLIES: u64 = 100;
const TAKEOVER_TIME: Duration = Duration::from_secs(60);
const OFF_TIME: Duration = Duration::from_secs(120);
const OFFSET_MAX_MS: i64 = 3000;
