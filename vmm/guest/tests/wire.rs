//! The server on a wire, with clients on its other end, in a time that the test makes: what clients see when frames are
//! lost, when the guest stands still or moves to another host, and when there are too many of them.

mod world;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lockstep_guest::db::{Db, Memory};
use lockstep_guest::disk::NoDisk;
use lockstep_guest::limits::LOG_HIGH_MAX;
use lockstep_guest::log::Log;
use lockstep_guest::server::{Next, Server};
use lockstep_guest::store::Store;
use smoltcp::socket::tcp;

type World = world::World<NoDisk>;

/// A world whose server has so many sockets, and no disk.
fn world(connections: usize) -> World {
    world_with(connections, || usize::MAX)
}

/// The same, where so much memory is free.
fn world_with(connections: usize, free: fn() -> usize) -> World {
    World::with(connections, |mut nic, now, stack| {
        let memory = Memory {
            store_max: 1 << 20,
            buffers_max: 4 << 20,
            log_high: LOG_HIGH_MAX,
            free,
            reserve: 0,
        };
        let (stack, handles) = stack(&mut nic);
        let db = Db::new(Store::new(), Log::volatile(), memory, now, || 7);
        Server::new(db, stack, handles, nic, NoDisk)
    })
}

const MOMENT: Duration = Duration::from_millis(30);

#[test]
fn a_reply_lost_in_a_takeover_is_sent_again_at_once() {
    let mut world = world(4);
    let client = world.connect();
    world.run_for(MOMENT);
    world.say(client, "set a 1\r\n");
    world.run_for(MOMENT);
    assert_eq!(world.hear(client), "+OK\r\n");

    *world.is_cut.borrow_mut() = true;
    world.say(client, "get a\r\n");
    world.round();
    world.stand_still(Duration::from_millis(150));
    *world.is_cut.borrow_mut() = false;
    world.run_for(Duration::from_millis(2));
    assert_eq!(world.hear(client), "$1\r\n1\r\n");
}

#[test]
fn a_reply_lost_twice_still_comes_within_a_third_of_a_second() {
    let mut world = world(4);
    let client = world.connect();
    world.run_for(MOMENT);
    *world.is_cut.borrow_mut() = true;
    world.say(client, "ping\r\n");
    world.run_for(Duration::from_millis(150));
    *world.is_cut.borrow_mut() = false;
    world.run_for(Duration::from_millis(150));
    assert_eq!(world.hear(client), "+PONG\r\n");
}

#[test]
fn connections_outlive_a_guest_that_stands_still_for_an_hour() {
    let mut world = world(4);
    let client = world.connect();
    world.run_for(MOMENT);
    world.say(client, "ping\r\n");
    world.run_for(MOMENT);
    world.hear(client);

    world.stand_still(Duration::from_secs(3600));
    world.say(client, "ping\r\n");
    world.run_for(MOMENT);
    assert_eq!(world.hear(client), "+PONG\r\n");
}

#[test]
fn a_client_that_vanished_is_forgotten_and_makes_room() {
    let mut world = world(1);
    let client = world.connect();
    world.run_for(MOMENT);
    assert!(world.socket(client).may_send());
    world.sockets.remove(client);

    // The other end now answers keep-alives with a reset, or not at all.
    world.run_for(Duration::from_secs(80));
    let next = world.connect();
    world.run_for(MOMENT);
    world.say(next, "ping\r\n");
    world.run_for(MOMENT);
    assert_eq!(world.hear(next), "+PONG\r\n");
}

#[test]
fn one_client_too_many_is_refused_and_the_others_go_on() {
    let mut world = world(2);
    let clients = [world.connect(), world.connect()];
    world.run_for(MOMENT);
    let refused = world.connect();
    world.run_for(MOMENT);
    assert_eq!(world.socket(refused).state(), tcp::State::Closed);
    world.say(clients[1], "ping\r\n");
    world.run_for(MOMENT);
    assert_eq!(world.hear(clients[1]), "+PONG\r\n");

    world.say(clients[0], "quit\r\n");
    world.run_for(MOMENT);
    assert_eq!(world.hear(clients[0]), "+OK\r\n");
    world.socket(clients[0]).close();
    world.run_for(Duration::from_secs(2));
    let next = world.connect();
    world.run_for(MOMENT);
    assert!(world.socket(next).may_send());
}

#[test]
fn a_client_that_never_completes_its_connection_makes_room() {
    let mut world = world(1);
    *world.is_cut.borrow_mut() = true;
    let silent = world.connect();
    world.run_for(MOMENT);
    world.sockets.remove(silent);
    // Resets of the vanished client must not help: it says nothing at all.
    world.run_for(Duration::from_secs(5));
    *world.is_cut.borrow_mut() = false;

    let next = world.connect();
    world.run_for(MOMENT);
    assert!(world.socket(next).may_send());
}

#[test]
fn bad_bytes_are_answered_and_end_the_connection() {
    let mut world = world(1);
    let client = world.connect();
    world.run_for(MOMENT);
    world.say(client, "*1\r\n:12\r\n");
    world.run_for(MOMENT);
    assert_eq!(
        world.hear(client),
        "-ERR Protocol error: expected '$', got ':'\r\n"
    );
    assert!(!world.socket(client).may_recv());
}

#[test]
fn a_client_that_has_said_everything_still_hears_the_rest() {
    let mut world = world(1);
    let client = world.connect();
    world.run_for(MOMENT);
    world.say(client, "ping\r\nping\r\n");
    world.socket(client).close();
    world.run_for(MOMENT);
    assert_eq!(world.hear(client), "+PONG\r\n+PONG\r\n");
}

#[test]
fn shutdown_ends_the_loop() {
    let mut world = world(1);
    let client = world.connect();
    world.run_for(MOMENT);
    world.say(client, "shutdown\r\n");
    world.poll_clients();
    assert_eq!(world.server.turn(world.now), Next::PowerOff);
}

#[test]
fn what_was_said_behind_a_long_reply_is_answered_without_another_word_from_the_client() {
    let mut world = world(1);
    let client = world.connect_with(256 << 10);
    // Everything is on the wire at once.
    world.socket(client).set_nagle_enabled(false);
    world.run_for(MOMENT);
    // The first reply alone stalls the connection, and what follows fills its room.
    let text = format!("*2\r\n$4\r\necho\r\n$40960\r\n{}\r\n", "x".repeat(40960));
    world.say(client, &(text + &"ping\r\n".repeat(3000)));
    world.poll_clients();
    let is_awake = |next| matches!(next, Next::Again | Next::Wait(Some(Duration::ZERO)));
    while is_awake(world.server.turn(world.now)) {}
    world.poll_clients();
    assert_eq!(world.hear(client).matches("+PONG\r\n").count(), 3000);
}

#[test]
fn a_large_reply_waits_until_memory_is_free_and_not_only_due_to_it() {
    static FREE: AtomicUsize = AtomicUsize::new(usize::MAX);
    let mut world = world_with(1, || FREE.load(Ordering::Relaxed));
    let client = world.connect_with(256 << 10);
    world.run_for(MOMENT);
    let value = "x".repeat(200_000);
    world.say(
        client,
        &format!("*3\r\n$3\r\nset\r\n$1\r\na\r\n$200000\r\n{value}\r\n"),
    );
    world.run_for(MOMENT);
    assert_eq!(world.hear(client), "+OK\r\n");

    FREE.store(100_000, Ordering::Relaxed);
    world.say(client, "get a\r\n");
    world.run_for(Duration::from_millis(500));
    assert_eq!(world.hear(client), "");
    FREE.store(300_000, Ordering::Relaxed);
    world.run_for(Duration::from_millis(500));
    assert!(world.hear(client).starts_with("$200000\r\n"));

    FREE.store(100_000, Ordering::Relaxed);
    world.say(client, "get a\r\n");
    world.run_for(Duration::from_secs(3));
    assert!(world.hear(client).starts_with("-OOM the reply is longer"));
}
