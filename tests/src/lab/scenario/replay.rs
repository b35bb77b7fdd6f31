//! `lab replay`: a life of the Debian guest is recorded on one emulated host, from its boot until it switches itself off,
//! and is executed again from the log. Both must have made the same exits with the same registers, and no page of memory
//! may differ.
//!
//! Two lives are told. In the first the guest works by itself: processes, files on its disk, TCP both ways. In the second
//! it is the guest of the other scenarios, with redis and clients. Its programs are dynamically linked, and Debian's ld.so
//! executes `rdtsc` in ring 3 whenever one starts; those must have been answered, too.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};
use lockstep_demo::outside::{self, Outside};
use serde_json::Value;

use super::{Order, until_acked};
use crate::lab::config::{Guest, cmdline};
use crate::lab::guest_image::{STATIC_PORT, STATIC_WORD};
use crate::lab::host_image::{GUEST as GUEST_DIR, LOG_PORT, TAP};
use crate::lab::report::Report;
use crate::lab::wires::{GUEST, Node, OUTSIDE};
use crate::lab::world::World;
use crate::qemu::processes::eventually;

/// The program that records and replays; an example of the VMM.
pub const EXAMPLE: &str = "replay_linux";

/// Tells both lives.
pub fn play(order: &Order) -> anyhow::Result<Report> {
    if order.setting.guest != Guest::Debian {
        bail!("Only the Debian guest switches itself off: leave --guest out");
    }
    let mut world = World::build(&order.setting, "replay")?;
    let found = static_life(&mut world)?;
    let with_redis = redis_life(&mut world, order)?;

    let mut report = order.report("replay");
    for (key, words) in FIGURES {
        report.figure(key, words, figure(&found, key)?);
    }
    for (key, of, words) in REDIS_FIGURES {
        report.figure(key, words, figure(&with_redis, of)?);
    }
    judge(&mut report, "The first life", &found);
    judge(&mut report, "The life with redis", &with_redis);
    let answered = with_redis["user_rdtsc"][0].as_u64();
    report.must(
        answered > Some(0),
        "No rdtsc of user space was answered, but ld.so has some",
    );
    Ok(report)
}

fn judge(report: &mut Report, life: &str, found: &Value) {
    let (exits, replayed) = (&found["exits"], &found["replayed_exits"]);
    report.must(
        exits == replayed,
        format!("{life} made {exits} exits, its replay {replayed}"),
    );
    for key in ["diverged_exits", "differing_pages"] {
        report.must(found[key] == 0, format!("{life}: {key} is {}", found[key]));
    }
    let same = found["registers_equal"] == true;
    report.must(same, format!("{life}: the last registers differ"));
}

/// The guest works through processes, files and a message, and ends.
fn static_life(world: &mut World) -> anyhow::Result<Value> {
    start(world, STATIC_WORD)?;
    let message: Vec<u8> = (0..MESSAGE_BYTES).map(|at| ((at * at) >> 7) as u8).collect();
    let returned = exchange(world, &message)?;
    if returned != message {
        bail!("The guest sent back something else than it was sent");
    }
    result(world)
}

/// The guest serves clients until it is told to end.
fn redis_life(world: &mut World, order: &Order) -> anyhow::Result<Value> {
    start(world, "")?;
    eventually(
        "the guest's server to answer",
        order.setting.guest.boot_time(),
        || {
            check(world)?;
            Ok(outside::answers(GUEST)?.then_some(()))
        },
    )?;
    let clients = Outside::start(GUEST, order.clients, order.seed)?;
    let talked = until_acked(&clients, REPLIES);
    let memory = clients.stop()?;
    talked?;
    let losses = memory.read_back(GUEST)?;
    if memory.seen().wrong + losses.wrong + losses.lost > 0 {
        bail!("The guest answered wrongly: {:?}", memory.seen().stories);
    }
    outside::shut_down(GUEST)?;
    result(world)
}

fn start(world: &World, word: &str) -> anyhow::Result<()> {
    let (cmdline, memory_mib) = (cmdline(Guest::Debian), Guest::Debian.memory_mib());
    world
        .host(Node::A)
        .run(&format!(
            "cd /tmp && {EXAMPLE} --kernel {GUEST_DIR}/vmlinuz --initrd {GUEST_DIR}/initrd --disk /dev/vda --tap {TAP} \
             --memory-mib {memory_mib} --cmdline '{cmdline} {word}' \
             > {OUTPUT} 2> {LOG_PORT} < /dev/null &"
        ))
        .map(drop)
}

/// Sends the guest a message and takes what it sends back.
fn exchange(world: &mut World, message: &[u8]) -> anyhow::Result<Vec<u8>> {
    let listener = TcpListener::bind((OUTSIDE, STATIC_PORT))?;
    let guest = SocketAddr::new(GUEST.ip(), STATIC_PORT);
    let mut there = eventually("the guest to listen", Guest::Debian.boot_time(), || {
        check(world)?;
        Ok(TcpStream::connect_timeout(&guest, CONNECT_TIME).ok())
    })?;
    there.set_write_timeout(Some(MESSAGE_TIME))?;
    there.write_all(message)?;
    there.shutdown(Shutdown::Write)?;
    listener.set_nonblocking(true)?;
    let (mut back, _) = eventually("the guest to connect", MESSAGE_TIME, || {
        Ok(listener.accept().ok())
    })?;
    back.set_nonblocking(false)?;
    back.set_read_timeout(Some(MESSAGE_TIME))?;
    let mut returned = Vec::new();
    back.read_to_end(&mut returned)?;
    Ok(returned)
}

/// Says so when the example has ended, which it should not have.
fn check(world: &mut World) -> anyhow::Result<()> {
    match is_running(world)? {
        true => Ok(()),
        false => bail!("The replay ended. {}", world.last_words()),
    }
}

fn is_running(world: &mut World) -> anyhow::Result<bool> {
    world.host_mut(Node::A).check()?;
    let said = world
        .host(Node::A)
        .run(&format!("pidof {EXAMPLE} || echo none"))?;
    Ok(said.trim() != "none")
}

/// Waits for the example to end and takes what it found.
fn result(world: &mut World) -> anyhow::Result<Value> {
    eventually("the replay to end", REPLAY_TIME, || {
        Ok((!is_running(world)?).then_some(()))
    })?;
    let said = world.host(Node::A).run(&format!("tail -n 1 {OUTPUT}"))?;
    serde_json::from_str(&said).with_context(|| format!("The replay said {said:?}. {}", world.last_words()))
}

fn figure(found: &Value, key: &str) -> anyhow::Result<Value> {
    let value = found.get(key);
    value
        .cloned()
        .with_context(|| format!("The replay said nothing of {key}"))
}

/// Where its last line is the result.
const OUTPUT: &str = "/tmp/replay.json";
const MESSAGE_BYTES: usize = 1 << 20;
const REPLIES: u64 = 300;
const CONNECT_TIME: Duration = Duration::from_secs(1);
const MESSAGE_TIME: Duration = Duration::from_secs(60);
const REPLAY_TIME: Duration = Duration::from_secs(480);
const FIGURES: [(&str, &str); 8] = [
    ("exits", "Exits"),
    ("diverged_exits", "Exits that differ"),
    ("pages", "Pages of memory"),
    ("differing_pages", "Pages that differ"),
    ("log_bytes", "Log, bytes"),
    ("records", "Log, records"),
    ("record_s", "Recorded in, s"),
    ("replay_s", "Replayed in, s"),
];
const REDIS_FIGURES: [(&str, &str, &str); 6] = [
    ("redis_exits", "exits", "With redis: exits"),
    (
        "redis_diverged_exits",
        "diverged_exits",
        "With redis: exits that differ",
    ),
    (
        "redis_differing_pages",
        "differing_pages",
        "With redis: pages that differ",
    ),
    ("redis_log_bytes", "log_bytes", "With redis: log, bytes"),
    ("redis_records", "records", "With redis: log, records"),
    (
        "redis_user_rdtsc",
        "user_rdtsc",
        "With redis: rdtsc of user space, recorded and replayed",
    ),
];
