//! Who knocks at the door of a host that runs its VM without a backup.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod strangers;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_protocol::{Hello, NodeName, Role};
use lockstep_quic::config::{LinkConfig, MAX_HANDSHAKES};
use lockstep_quic::dates::Validity;
use lockstep_quic::identity::Identity;
use lockstep_quic::state::{StateConfig, StateDoor, StateReceiver};

/// Less than a stranger is given, who is silent for two seconds at most, and plenty for a spare.
const SOON: Duration = Duration::from_millis(1500);
/// Longer than whatever else takes.
const LONG: Duration = Duration::from_secs(3);

fn identity(node: &str) -> Identity {
    let pems = Identity::generate(node, Validity::years(1)).unwrap();
    Identity::from_pems(node, &pems).unwrap()
}

fn config(node: &str, role: Role, ours: &Identity, other: &Identity, address: SocketAddr) -> StateConfig {
    StateConfig {
        address,
        identity: ours.clone(),
        peers: vec![other.as_peer()],
        hello: Hello::bare(NodeName::new(node).unwrap(), role),
    }
}

fn free_address() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.local_addr().unwrap()
}

/// The door of a host, and how its spare knocks there.
fn door_and_spare() -> (StateDoor, StateConfig) {
    let (host, spare) = (identity("a"), identity("b"));
    let address = free_address();
    let door = StateDoor::open(config("a", Role::Primary, &host, &spare, address)).unwrap();
    (door, config("b", Role::Backup, &spare, &host, address))
}

/// Says the first word of a handshake to `door`, and nothing more.
fn stall_at(door: SocketAddr, stranger: StateConfig) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || StateReceiver::dial(&StateConfig { address, ..stranger }).map(drop));
    let mut word = [0; 65_536];
    let length = socket.recv(&mut word).unwrap();
    socket.send_to(&word[..length], door).unwrap();
    socket
}

#[test]
fn a_stranger_that_stalls_in_its_handshake_keeps_no_spare_waiting() {
    let (door, knocking) = door_and_spare();
    let _stranger = stall_at(knocking.address, knocking.clone());
    assert_admits_soon(&door, knocking);
}

#[test]
fn as_many_strangers_as_there_are_places_keep_no_spare_out() {
    let (door, knocking) = door_and_spare();
    let forger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for packet in strangers::first_packets(MAX_HANDSHAKES, LinkConfig::state()) {
        forger.send_to(&packet, knocking.address).unwrap();
    }
    assert_admits_soon(&door, knocking);
}

fn assert_admits_soon(door: &StateDoor, knocking: StateConfig) {
    let begin = Instant::now();
    let taken_in = thread::spawn(move || {
        std::iter::repeat_with(|| StateReceiver::dial(&knocking))
            .take_while(|_| begin.elapsed() < SOON)
            .find_map(Result::ok)
            .is_some()
    });
    let admitted = door.admit(SOON).unwrap();
    assert_eq!(admitted.peer().node, NodeName::new("b").unwrap());
    assert!(taken_in.join().unwrap());
}

#[test]
fn a_spare_that_leaves_is_noticed_by_who_sends_more_and_more() {
    let (door, knocking) = door_and_spare();
    let leaving = thread::spawn(move || {
        let mut receiver = std::iter::repeat_with(|| StateReceiver::dial(&knocking))
            .find_map(Result::ok)
            .unwrap();
        let first = receiver.take().unwrap();
        drop(receiver);
        first
    });
    let mut sender = door.admit(LONG).unwrap();

    let piece = Bytes::from(vec![7; 1 << 20]);
    let begin = Instant::now();
    let refused = std::iter::repeat_with(|| sender.send(1, piece.clone())).find_map(Result::err);
    assert!(begin.elapsed() < LONG);
    assert!(refused.unwrap().to_string().contains("the copy is over"));
    // It stays so.
    sender.send(1, piece.clone()).unwrap_err();
    assert_eq!(leaving.join().unwrap(), (1, piece));
}
