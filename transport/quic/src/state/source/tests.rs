//! A copy to a spare that is there, and whose disk is not.

use std::net::{Ipv4Addr, UdpSocket};
use std::thread;

use lockstep_protocol::{NodeName, Role};

use super::*;
use crate::dates::Validity;
use crate::identity::Identity;
use crate::state::{PIECE_MAX, StateReceiver};

/// Long enough for whoever takes pieces.
const LIMIT: Duration = Duration::from_millis(300);

fn identity(node: &str) -> Identity {
    let pems = Identity::generate(node, Validity::years(1)).unwrap();
    Identity::from_pems(node, &pems).unwrap()
}

/// The door of a host, which ends everything that came in by it when it is dropped, and both ends of a copy to a spare.
fn door_and_copy() -> (StateDoor, StateSender, StateReceiver) {
    let (host, spare) = (identity("a"), identity("b"));
    let free = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let config = |node, role, ours: &Identity, other: &Identity| StateConfig {
        address,
        identity: ours.clone(),
        peers: vec![other.as_peer()],
        hello: Hello::bare(NodeName::new(node).unwrap(), role),
    };
    let door = StateDoor::open(config("a", Role::Primary, &host, &spare)).unwrap();
    let knocking = config("b", Role::Backup, &spare, &host);
    let dialling = thread::spawn(move || {
        std::iter::repeat_with(|| StateReceiver::dial(&knocking))
            .find_map(Result::ok)
            .unwrap()
    });
    let sender = door.admit(Duration::from_secs(10)).unwrap();
    (door, sender, dialling.join().unwrap())
}

#[test]
fn a_spare_that_lives_and_takes_nothing_is_given_up() {
    let (_door, mut sender, mut hangs) = door_and_copy();

    let piece = Bytes::from(vec![7; PIECE_MAX]);
    let given_up = std::iter::repeat_with(|| sender.send_within(LIMIT, 1, piece.clone()))
        .take(100)
        .find_map(Result::err);
    assert!(matches!(given_up, Some(PairError::Stuck(LIMIT))), "{given_up:?}");
    // It stays so, without any more waiting.
    let begin = std::time::Instant::now();
    sender.send(1, piece).unwrap_err();
    assert!(begin.elapsed() < PIECE_WAIT / 3);

    // What ends the copy is heard too: the reason, or a reset if the packet with the reason was lost.
    let ended = std::iter::repeat_with(|| hangs.take()).find_map(Result::err);
    assert!(matches!(ended, Some(PairError::Link(_))), "{ended:?}");
}
