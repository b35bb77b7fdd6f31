//! A session between two halves of a pair: the log goes over, acks come back, losses are told.

#![allow(
    clippy::unwrap_used,
    reason = "this is a test; the lint's own exception knows only test functions"
)]

mod pair;
mod strangers;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use lockstep_protocol::{
    Deed, Digest, LogOffset, NodeName, Parting, PeerLost, Position, Record, Role, WindowLimit,
};
use lockstep_quic::config::{LinkConfig, MAX_HANDSHAKES};
use lockstep_quic::endpoint::PinnedEndpoint;
use lockstep_quic::link::{
    BackupEvents, Delivered, PairConfig, PrimaryEvents, Room, connect_primary, listen_backup,
};
use lockstep_quic::pinning::Pins;
use pair::{Event, Host, LONG, Pair, hosts, nowhere, pair, pair_behind, pair_with, pair_with_wire, refusals};

fn record(delivered: Delivered) -> Record {
    match delivered {
        Delivered::Record(record) => record,
        other => panic!("{other:?} in place of a record"),
    }
}

/// Takes records until `count` are there, and says so, as a VM does.
fn execute(pair: &Pair, count: u64) -> Vec<Record> {
    (1..=count)
        .map(|done| {
            let record = record(pair.backup.wait_record(LONG));
            pair.backup.executed(LogOffset::new(done), record.position);
            record
        })
        .collect()
}

// --- The log ---

#[test]
fn records_arrive_in_order_and_are_acked() {
    let pair = pair();
    (1..=500).for_each(|n: u64| {
        pair.append(n, &n.to_le_bytes());
    });
    let records = execute(&pair, 500);
    assert!(
        records
            .iter()
            .zip(1..)
            .all(|(record, n)| record.input.payload() == u64::to_le_bytes(n))
    );
    pair.report(|event| *event == Event::Acked(LogOffset::new(500)));
}

#[test]
fn a_record_larger_than_any_packet_arrives_whole() {
    let pair = pair();
    let large: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    pair.append(1, &large);
    assert_eq!(record(pair.backup.wait_record(LONG)).input.payload(), large);
}

#[test]
fn the_primary_hears_how_far_the_backup_has_executed() {
    let pair = pair();
    pair.append(1, b"x");
    execute(&pair, 1);
    let deadline = Instant::now() + LONG;
    while pair.primary.lock().executed() < LogOffset::new(1) {
        pair.report(|event| matches!(event, Event::Lease(_)));
        assert!(Instant::now() < deadline);
    }
    assert_eq!(pair.primary.lock().executed_position(), Position::new(1));
}

#[test]
fn a_record_that_does_not_come_is_waited_for_as_long_as_asked() {
    assert_eq!(
        pair().backup.wait_record(Duration::from_millis(5)),
        Delivered::Nothing
    );
}

#[test]
fn the_lease_is_renewed_while_nothing_happens() {
    let pair = pair();
    let first = pair.report(|event| matches!(event, Event::Lease(_)));
    let later = pair.report(|event| matches!(event, Event::Lease(_)));
    assert_ne!(first, later);
}

#[test]
fn a_backup_that_stalls_pushes_back_until_the_primary_has_no_room() {
    let pair = pair_with(WindowLimit {
        records: 1 << 20,
        bytes: 8 << 20,
    });
    let page = vec![7; 64 << 10];
    let mut appended = 0;
    while pair.primary.wait_room(Duration::from_millis(300)) == Room::Open {
        appended += 1;
        pair.append(appended, &page);
    }
    // The backlog, one stream window and the log window, and what was being read when it was full.
    let held = appended << 16;
    assert!(
        ((8 + 8) << 20..(8 + 4 + 8 + 2) << 20).contains(&held),
        "{held} bytes were taken"
    );
    assert_eq!(
        pair.primary.lost(),
        None,
        "heartbeats pass although the log does not"
    );

    execute(&pair, appended);
    assert_eq!(pair.primary.wait_room(LONG), Room::Open);
    pair.report(|event| *event == Event::Acked(LogOffset::new(appended)));
}

// --- Losses ---

#[test]
fn a_primary_whose_backup_is_gone_is_told_within_the_timeout() {
    let pair = pair();
    let Pair {
        primary,
        backup,
        events,
    } = pair;
    let gone = Instant::now();
    drop(backup);
    let why = events
        .iter()
        .find(|event| matches!(event, Event::Lost(_)))
        .unwrap();
    assert!(
        gone.elapsed() < Duration::from_millis(300),
        "{why:?} after {:?}",
        gone.elapsed()
    );
    assert!(matches!(primary.wait_room(LONG), Room::Lost(_)));
    let mut claiming = primary.into_claiming();
    assert!(matches!(
        claiming.poll_deed(lockstep_quic::clock::now()),
        Some(Deed::Claim { .. })
    ));
}

#[test]
fn a_wire_that_is_cut_is_a_silent_peer_on_both_sides_within_the_timeout() {
    let (pair, wire) = pair_with_wire();
    pair.report(|event| matches!(event, Event::Lease(_)));
    let cut = Instant::now();
    wire.cut();
    assert!(matches!(pair.loss(), PeerLost::Silent(_)));
    assert!(matches!(
        pair.backup.wait_record(LONG),
        Delivered::PeerLost(PeerLost::Silent(_))
    ));
    let detected = cut.elapsed();
    assert!(detected < Duration::from_millis(120 + 80), "{detected:?}");
}

#[test]
fn a_lease_is_over_before_the_backup_may_live() {
    let (pair, wire) = pair_with_wire();
    pair.report(|event| matches!(event, Event::Lease(_)));
    wire.cut();
    pair.loss();
    let lease_until = pair.primary.lock().lease_until();
    // Both run on one clock here, so the two moments can be compared.
    assert!(pair.backup.into_takeover().lease_over() > lease_until);
}

#[test]
fn a_backup_delivers_all_it_got_before_it_tells_of_the_loss() {
    let pair = pair();
    (1..=100).for_each(|n| {
        pair.append(n, b"x");
    });
    pair.report(|event| *event == Event::Acked(LogOffset::new(100)));
    let Pair {
        primary,
        backup,
        events,
    } = pair;
    drop(primary);
    let records = std::iter::from_fn(|| match backup.wait_record(LONG) {
        Delivered::Record(record) => Some(record),
        Delivered::PeerLost(_) => None,
        Delivered::Nothing => panic!("neither a record nor a loss"),
    });
    assert_eq!(records.count(), 100);
    drop(events);

    let mut takeover = backup.into_takeover();
    assert_eq!(takeover.end(), LogOffset::new(100));
    takeover.handle_replayed();
    assert!(matches!(
        takeover.poll_deed(lockstep_quic::clock::now()),
        Some(Deed::Claim { .. })
    ));
}

#[test]
fn records_that_were_not_delivered_go_over_into_the_takeover() {
    let pair = pair();
    (1..=3).for_each(|n| {
        pair.append(n, b"x");
    });
    pair.report(|event| *event == Event::Acked(LogOffset::new(3)));
    let mut takeover = pair.backup.into_takeover();
    let left: Vec<_> = std::iter::from_fn(|| takeover.poll_deliver())
        .map(|record| record.position.get())
        .collect();
    assert_eq!(left, [1, 2, 3]);
}

#[test]
fn a_primary_that_leaves_lets_the_backup_have_the_whole_log_first() {
    let pair = pair();
    (1..=1000).for_each(|n| {
        pair.append(n, b"x");
    });
    let Pair {
        primary,
        backup,
        events: _events,
    } = pair;
    primary.leave(Parting::PowerOff);
    (1..=1000).for_each(|n| assert_eq!(record(backup.wait_record(LONG)).position.get(), n));
    assert_eq!(
        backup.wait_record(LONG),
        Delivered::PeerLost(PeerLost::Left(Parting::PowerOff))
    );
}

#[test]
fn a_backup_that_leaves_says_so() {
    let Pair {
        primary,
        backup,
        events,
    } = pair();
    backup.leave(Parting::Stopped);
    let pair_events = events.iter().find(|event| matches!(event, Event::Lost(_)));
    assert_eq!(pair_events, Some(Event::Lost(PeerLost::Left(Parting::Stopped))));
    drop(primary);
}

#[test]
fn a_driver_that_dies_is_a_lost_peer_and_nobody_waits_for_it() {
    let (a, b) = hosts();
    let (socket, address) = nowhere();
    drop(socket);
    let config = b.config(address, a.identity.as_peer());
    let backup = std::thread::spawn(move || listen_backup(config, Box::new(Deaf)));
    // Without a window, only a loss ends the waiting for room.
    let window = WindowLimit { records: 0, bytes: 0 };
    let config = PairConfig {
        window,
        ..a.config(address, b.identity.as_peer())
    };
    let primary = connect_primary(config, Box::new(Bomb)).unwrap();
    let backup = backup.join().unwrap().unwrap();
    assert!(matches!(
        primary.wait_room(LONG),
        Room::Lost(PeerLost::Disconnected(_))
    ));
    primary.into_claiming();
    drop(backup);
}

/// Panics at the first echo.
struct Bomb;

impl PrimaryEvents for Bomb {
    fn acked(&mut self, _: LogOffset) {}
    fn lease(&mut self, _: lockstep_protocol::Instant) {
        panic!("this test wants the driver dead");
    }
    fn peer_lost(&mut self, _: PeerLost) {}
}

#[test]
fn a_backup_that_says_nonsense_is_lost() {
    let pair = pair();
    pair.append(1, b"x");
    pair.report(|event| *event == Event::Acked(LogOffset::new(1)));
    // Its VM is said to be further than the log leads: the next ack says so too.
    pair.backup.executed(LogOffset::ZERO, Position::new(900));
    pair.append(2, b"x");
    assert!(matches!(pair.loss(), PeerLost::Misbehaved(_)));
}

// --- Refusals ---

#[test]
fn another_configuration_is_refused_on_both_sides_with_the_same_sentence() {
    let (a, mut b) = hosts();
    b.hello.config = Digest::new([9; 32]);
    let (at_a, at_b) = refusals(&a, &b);
    assert!(at_a.contains("different configurations"), "{at_a}");
    assert_eq!(at_a, at_b);
}

#[test]
fn another_cpu_template_is_refused_by_name() {
    let (a, mut b) = hosts();
    b.hello.template = Digest::new([9; 32]);
    let (at_a, at_b) = refusals(&a, &b);
    assert!(at_a.contains("different CPU templates"), "{at_a}");
    assert!(at_b.contains("different CPU templates"), "{at_b}");
}

#[test]
fn another_version_is_refused_with_both_releases() {
    let (a, mut b) = hosts();
    b.hello.release = "0.2.0".into();
    b.hello.version += 1;
    let (at_a, at_b) = refusals(&a, &b);
    assert!(
        at_a.contains("release 0.2.0") && at_a.contains("release 0.1.0"),
        "{at_a}"
    );
    assert!(
        at_b.contains("release 0.2.0") && at_b.contains("release 0.1.0"),
        "{at_b}"
    );
}

#[test]
fn two_hosts_of_one_name_are_refused() {
    let (a, mut b) = hosts();
    b.hello.node = NodeName::new("a").unwrap();
    assert!(refusals(&a, &b).0.contains("call themselves a"));
}

#[test]
fn a_backup_with_an_unpinned_certificate_is_refused_and_named() {
    let (a, b) = hosts();
    let stranger = Host::new("b", Role::Backup);
    let (_socket, address) = nowhere();
    drop(_socket);
    let mut config = stranger.config(address, a.identity.as_peer());
    config.patience = Duration::from_millis(700);
    let backup = std::thread::spawn(move || listen_backup(config, Box::new(Deaf)));
    let error = connect_primary(a.config(address, b.identity.as_peer()), Box::new(Deaf)).unwrap_err();
    assert!(error.to_string().contains("Refused the peer"), "{error}");
    let nobody = backup.join().unwrap().unwrap_err();
    assert!(nobody.to_string().contains("No primary came"), "{nobody}");
}

#[test]
fn a_primary_with_an_unpinned_certificate_is_told_so_at_once() {
    let (a, b) = hosts();
    let stranger = Host::new("a", Role::Primary);
    let (socket, address) = nowhere();
    drop(socket);
    let mut config = b.config(address, a.identity.as_peer());
    config.patience = Duration::from_millis(700);
    let backup = std::thread::spawn(move || listen_backup(config, Box::new(Deaf)));
    let error = connect_primary(stranger.config(address, b.identity.as_peer()), Box::new(Deaf)).unwrap_err();
    assert!(error.to_string().contains("refuses our certificate"), "{error}");
    let nobody = backup.join().unwrap().unwrap_err();
    assert!(nobody.to_string().contains("the last who tried"), "{nobody}");
}

#[test]
fn a_recognised_peer_that_talks_nonsense_is_sent_away_and_the_next_is_taken() {
    let (a, b) = hosts();
    let (socket, address) = nowhere();
    drop(socket);
    let config = b.config(address, a.identity.as_peer());
    let backup = std::thread::spawn(move || listen_backup(config, Box::new(Deaf)));
    babble(&a, &b, address);
    let primary = connect_primary(a.config(address, b.identity.as_peer()), Box::new(Deaf)).unwrap();
    let backup = backup.join().unwrap().unwrap();
    assert_eq!(backup.peer().node, a.hello.node);
    drop(primary);
}

#[test]
fn as_many_strangers_as_there_are_places_keep_no_primary_out() {
    let forger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let packets = strangers::first_packets(MAX_HANDSHAKES, LinkConfig::pair());
    let begin = Instant::now();
    let pair = pair_behind(|door| {
        for packet in &packets {
            forger.send_to(packet, door).unwrap();
        }
    });
    // Less than a stranger is given.
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    drop(pair);
}

/// Connects as `a`, says what is no hello, and waits to be sent away.
fn babble(a: &Host, b: &Host, address: SocketAddr) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let pins = Pins::one(b.identity.as_peer());
        let endpoint =
            PinnedEndpoint::dial_only(address, a.identity.clone(), pins, LinkConfig::pair()).unwrap();
        let connection = endpoint.connect(address, LONG).await.unwrap();
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        send.write_all(b"\x01GET / HTTP/1.1\r\n").await.unwrap();
        connection.closed().await;
    });
}

#[test]
fn a_host_where_nobody_answers_cannot_be_reached() {
    let (a, b) = hosts();
    let (_silent, address) = nowhere();
    let config = PairConfig {
        patience: Duration::from_millis(100),
        ..a.config(address, b.identity.as_peer())
    };
    let error = connect_primary(config, Box::new(Deaf)).unwrap_err();
    assert!(error.to_string().contains("cannot be reached"), "{error}");
}

/// A backup `b` that recognises `a`, does `then` with each connection, and says no hello. It lives as long as the runtime.
fn mute_backup<F>(
    a: &Host,
    b: &Host,
    then: fn(quinn::Connection) -> F,
) -> (tokio::runtime::Runtime, SocketAddr)
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let _inside = runtime.enter();
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let pins = Pins::one(a.identity.as_peer());
    let endpoint = PinnedEndpoint::listen(anywhere, b.identity.clone(), pins, LinkConfig::pair()).unwrap();
    let address = endpoint.local_address().unwrap();
    runtime.spawn(async move {
        while let Some(arrival) = endpoint.arrival().await {
            if let Ok(connection) = arrival.handshake(LONG).await {
                then(connection).await;
            }
        }
    });
    drop(_inside);
    (runtime, address)
}

#[test]
fn a_backup_that_never_says_its_hello_is_waited_for_no_longer_than_asked() {
    let (a, b) = hosts();
    let (_runtime, address) = mute_backup(&a, &b, |connection| async move {
        connection.closed().await;
    });
    let config = PairConfig {
        patience: Duration::from_millis(200),
        ..a.config(address, b.identity.as_peer())
    };
    let begin = Instant::now();
    let error = connect_primary(config, Box::new(Deaf)).unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert!(error.to_string().contains("cannot be reached"), "{error}");
}

#[test]
fn what_the_backup_said_last_is_told_when_patience_ends() {
    let (a, b) = hosts();
    let (_runtime, address) = mute_backup(&a, &b, |connection| async move {
        connection.close(7_u32.into(), b"come back later");
    });
    let config = PairConfig {
        patience: Duration::from_secs(1),
        ..a.config(address, b.identity.as_peer())
    };
    let error = connect_primary(config, Box::new(Deaf)).unwrap_err();
    assert!(error.to_string().contains("come back later"), "{error}");
}

#[test]
fn an_address_in_use_is_told_before_anything_else() {
    let (a, b) = hosts();
    let (_taken, address) = nowhere();
    let config = b.config(address, a.identity.as_peer());
    let error = listen_backup(config, Box::new(Deaf)).unwrap_err();
    assert!(error.to_string().contains("already uses UDP address"), "{error}");
}

#[test]
fn a_lease_that_outlives_the_timeout_is_refused_before_anything_is_tried() {
    let (mut a, b) = hosts();
    a.hello.timing.lease = a.hello.timing.timeout;
    let (_silent, address) = nowhere();
    let error = connect_primary(a.config(address, b.identity.as_peer()), Box::new(Deaf)).unwrap_err();
    assert!(error.to_string().contains("shorter than the time-out"), "{error}");
}

/// Hears every report and does nothing.
struct Deaf;

impl PrimaryEvents for Deaf {
    fn acked(&mut self, _: LogOffset) {}
    fn lease(&mut self, _: lockstep_protocol::Instant) {}
    fn peer_lost(&mut self, _: PeerLost) {}
}

impl BackupEvents for Deaf {
    fn peer_lost(&mut self, _: PeerLost) {}
}
