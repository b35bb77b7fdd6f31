//! Two endpoints on loopback: who is let in, who is not, and what each side is told.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod strangers;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lockstep_quic::config::{CROWD, LARGEST_PACKET, LinkConfig};
use lockstep_quic::dates::{DateError, Validity};
use lockstep_quic::endpoint::{EndpointError, PinnedEndpoint};
use lockstep_quic::failure::LinkError;
use lockstep_quic::identity::{Identity, PinnedPeer};
use lockstep_quic::pinning::{Pins, Refusal};
use quinn::Connection;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(5);
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

fn identity(name: &str) -> Identity {
    let pems = Identity::generate(name, Validity::years(1)).unwrap();
    Identity::from_pems(name, &pems).unwrap()
}

fn listen(identity: &Identity, accepts: &PinnedPeer, config: LinkConfig) -> PinnedEndpoint {
    PinnedEndpoint::listen(LOOPBACK, identity.clone(), Pins::one(accepts.clone()), config).unwrap()
}

fn dialer(identity: &Identity, accepts: &PinnedPeer, config: LinkConfig) -> PinnedEndpoint {
    PinnedEndpoint::dial_only(LOOPBACK, identity.clone(), Pins::one(accepts.clone()), config).unwrap()
}

/// What the listening side gets, and what the calling side gets, of one attempt.
async fn meet(
    server: &PinnedEndpoint,
    client: &PinnedEndpoint,
) -> (Result<Connection, LinkError>, Result<Connection, LinkError>) {
    let address = server.local_address().unwrap();
    let accept = async { server.arrival().await.unwrap().handshake(PATIENCE).await };
    tokio::join!(accept, client.connect(address, PATIENCE))
}

/// Two peers that pin each other, `b` connected to `a`: the server and its end, the client and its end.
async fn friends() -> ((PinnedEndpoint, Connection), (PinnedEndpoint, Connection)) {
    let (a, b) = (identity("a"), identity("b"));
    let server = listen(&a, &b.as_peer(), LinkConfig::pair());
    let client = dialer(&b, &a.as_peer(), LinkConfig::pair());
    let (at_server, at_client) = meet(&server, &client).await;
    ((server, at_server.unwrap()), (client, at_client.unwrap()))
}

/// One end says hello, and the other end hears it.
async fn say(from: &Connection, to: &Connection) {
    let mut sending = from.open_uni().await.unwrap();
    sending.write_all(b"hello").await.unwrap();
    sending.finish().unwrap();
    let mut receiving = to.accept_uni().await.unwrap();
    assert_eq!(receiving.read_to_end(64).await.unwrap(), b"hello");
}

/// The client's connection looks made until the server has judged: what is its end?
async fn end_of(connection: Connection) -> LinkError {
    LinkError::of(connection.remote_address(), connection.closed().await)
}

#[tokio::test]
async fn peers_that_pin_each_other_talk() {
    let ((server, at_server), (_client, at_client)) = friends().await;
    say(&at_client, &at_server).await;
    assert_eq!(server.peer_of(&at_server).unwrap().label(), "b");
}

#[tokio::test]
async fn packets_grow_as_large_as_both_peers_and_the_path_take_them() {
    let ((_server, at_server), (_client, at_client)) = friends().await;

    // Probes go along with what is sent.
    let mut sending = at_client.open_uni().await.unwrap();
    let grown = async {
        while at_client.stats().path.current_mtu < LARGEST_PACKET {
            sending.write_all(&[0; 1024]).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let read = async {
        let mut receiving = at_server.accept_uni().await.unwrap();
        while receiving.read_chunk(usize::MAX, true).await.unwrap().is_some() {}
    };
    tokio::select! {
        grown = tokio::time::timeout(PATIENCE, grown) => grown.expect("the packets stay small"),
        () = read => unreachable!("the stream is never finished"),
    }
}

#[tokio::test]
async fn a_client_that_is_not_pinned_is_refused_and_told_so() {
    let (a, b, stranger) = (identity("a"), identity("b"), identity("stranger"));
    let server = listen(&a, &b.as_peer(), LinkConfig::pair());
    let client = dialer(&stranger, &a.as_peer(), LinkConfig::pair());

    let (at_server, at_client) = meet(&server, &client).await;

    let refused = at_server.unwrap_err();
    assert!(
        matches!(
            refused,
            LinkError::PeerRefused {
                source: Refusal::NotPinned { .. },
                ..
            }
        ),
        "{refused:?}"
    );
    let told = end_of(at_client.unwrap()).await;
    assert!(matches!(told, LinkError::RefusedByPeer { .. }), "{told:?}");
    assert!(!told.may_pass());
}

#[tokio::test]
async fn a_server_that_is_not_pinned_is_refused_and_told_so() {
    let (a, b, expected) = (identity("a"), identity("b"), identity("expected"));
    let server = listen(&a, &b.as_peer(), LinkConfig::pair());
    let client = dialer(&b, &expected.as_peer(), LinkConfig::pair());

    let (at_server, at_client) = meet(&server, &client).await;

    let refused = at_client.unwrap_err();
    assert!(
        matches!(
            refused,
            LinkError::PeerRefused {
                source: Refusal::NotPinned { .. },
                ..
            }
        ),
        "{refused:?}"
    );
    assert!(matches!(at_server.unwrap_err(), LinkError::RefusedByPeer { .. }));
}

#[tokio::test]
async fn a_certificate_that_expires_while_processes_run_is_refused_at_the_next_handshake() {
    let ends = SystemTime::now() + Duration::from_millis(1100);
    let short = Validity {
        from: SystemTime::now() - Duration::from_secs(60),
        until: ends,
    };
    let pems = Identity::generate("short", short).unwrap();
    let (a, brief) = (identity("a"), Identity::from_pems("short", &pems).unwrap());
    let server = listen(&a, &brief.as_peer(), LinkConfig::pair());
    let client = dialer(&brief, &a.as_peer(), LinkConfig::pair());
    // A certificate's dates have whole seconds: wait until the one after the last has begun.
    let over = ends + Duration::from_secs(1);
    tokio::time::sleep(over.duration_since(SystemTime::now()).unwrap()).await;

    let (at_server, at_client) = meet(&server, &client).await;

    let refused = at_server.unwrap_err();
    let dates = matches!(
        refused,
        LinkError::PeerRefused {
            source: Refusal::Dates(DateError::Expired { .. }),
            ..
        }
    );
    assert!(dates, "{refused:?}");
    let told = end_of(at_client.unwrap()).await;
    assert!(matches!(told, LinkError::ExpiredByPeer { .. }), "{told:?}");
}

#[tokio::test]
async fn a_peer_that_speaks_another_protocol_is_named_as_such() {
    let (a, b) = (identity("a"), identity("b"));
    let server = listen(&a, &b.as_peer(), LinkConfig::arbiter());
    let client = dialer(&b, &a.as_peer(), LinkConfig::pair());

    let (at_server, at_client) = meet(&server, &client).await;

    assert!(matches!(at_server.unwrap_err(), LinkError::OtherProtocol { .. }));
    assert!(matches!(at_client.unwrap_err(), LinkError::OtherProtocol { .. }));
}

#[tokio::test]
async fn a_port_that_nobody_answers_at_is_unreachable() {
    let (a, b) = (identity("a"), identity("b"));
    let silent = std::net::UdpSocket::bind(LOOPBACK).unwrap();
    let client = dialer(&b, &a.as_peer(), LinkConfig::pair());

    let failure = client
        .connect(silent.local_addr().unwrap(), Duration::from_millis(50))
        .await
        .unwrap_err();

    assert!(matches!(failure, LinkError::Unreachable { .. }), "{failure:?}");
    assert!(failure.may_pass());
}

#[tokio::test]
async fn a_second_process_on_the_port_is_told_that_it_is_in_use() {
    let (a, b) = (identity("a"), identity("b"));
    let first = listen(&a, &b.as_peer(), LinkConfig::pair());
    let taken = first.local_address().unwrap();

    let second = PinnedEndpoint::listen(taken, a, Pins::one(b.as_peer()), LinkConfig::pair());

    assert!(matches!(second, Err(EndpointError::AddressInUse { address }) if address == taken));
}

#[tokio::test]
async fn an_address_of_another_host_cannot_be_bound() {
    let (a, b) = (identity("a"), identity("b"));

    let elsewhere = PinnedEndpoint::listen(
        "192.0.2.1:7".parse().unwrap(),
        a,
        Pins::one(b.as_peer()),
        LinkConfig::pair(),
    );

    assert!(matches!(elsewhere, Err(EndpointError::CannotBind { .. })));
}

#[test]
fn a_restarted_peer_ends_the_old_connection_at_once() {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    };
    let (a, b) = (identity("a"), identity("b"));
    let (killed, survivor, restarted) = (runtime(), runtime(), runtime());
    let server = killed.block_on(async { listen(&a, &b.as_peer(), LinkConfig::pair()) });
    let address = server.local_address().unwrap();
    let client = survivor.block_on(async { dialer(&b, &a.as_peer(), LinkConfig::pair()) });
    let calling = survivor.spawn(async move { client.connect(address, PATIENCE).await.unwrap() });
    let at_server = killed.block_on(async { server.arrival().await.unwrap().handshake(PATIENCE).await });
    let at_client = survivor.block_on(calling).unwrap();
    // A runtime that is gone sends nothing more: what a kill leaves.
    killed.shutdown_timeout(PATIENCE);
    drop((at_server, server));
    let _again = restarted.block_on(async {
        PinnedEndpoint::listen(address, a, Pins::one(b.as_peer()), LinkConfig::pair()).unwrap()
    });

    let ended = survivor.block_on(async {
        // The reset that answers the first packet may come before everything is sent.
        if let Ok(mut sending) = at_client.open_uni().await {
            let _ = sending.write_all(&[0; 256]).await;
        }
        tokio::time::timeout(Duration::from_secs(2), at_client.closed()).await
    });

    assert_eq!(ended, Ok(quinn::ConnectionError::Reset));
}

// --- A crowd at the door ---

/// Is it the packet that asks a stranger to show that its address is its own?
fn is_retry(packet: &[u8]) -> bool {
    packet[0] & 0xb0 == 0xb0
}

#[tokio::test]
async fn in_a_crowd_a_stranger_must_show_that_its_address_is_its_own_and_a_peer_does() {
    let (a, b) = (identity("a"), identity("b"));
    let door = listen(&a, &b.as_peer(), LinkConfig::pair());
    let packets = strangers::first_packets(CROWD + 1, LinkConfig::pair());
    let (last, crowd) = packets.split_last().unwrap();
    let forger = UdpSocket::bind(LOOPBACK).await.unwrap();
    forger.connect(door.local_address().unwrap()).await.unwrap();

    // Nobody pays for the round trip before there is a crowd.
    let mut waiting = Vec::new();
    for packet in crowd {
        forger.send(packet).await.unwrap();
        waiting.push(timeout(PATIENCE, door.arrival()).await.unwrap().unwrap());
    }
    forger.send(last).await.unwrap();
    let mut answer = [0; 2048];
    tokio::select! {
        _ = door.arrival() => panic!("a stranger came in unasked"),
        length = forger.recv(&mut answer) => assert!(is_retry(&answer[..length.unwrap()])),
    }
    let client = dialer(&b, &a.as_peer(), LinkConfig::pair());
    let (at_door, at_client) = meet(&door, &client).await;
    say(&at_client.unwrap(), &at_door.unwrap()).await;

    // The crowd has gone.
    drop(waiting);
    forger.send(last).await.unwrap();
    let next = timeout(PATIENCE, door.arrival()).await.unwrap().unwrap();
    assert_eq!(next.from(), forger.local_addr().unwrap());
}

// --- Who can end a connection ---

/// A wire with somebody on it, who reads to which connection packets belong and can put in others.
struct Wire {
    near: Arc<UdpSocket>,
    /// Where packets came from last that are encrypted, and to which connection of the far end they belong.
    seen: watch::Receiver<Option<(SocketAddr, [u8; 8])>>,
}

impl Wire {
    async fn to(far_end: SocketAddr) -> Self {
        let near = Arc::new(UdpSocket::bind(LOOPBACK).await.unwrap());
        let far = UdpSocket::bind(LOOPBACK).await.unwrap();
        far.connect(far_end).await.unwrap();
        let (saw, seen) = watch::channel(None);
        tokio::spawn(Self::carry(near.clone(), far, saw));
        Self { near, seen }
    }

    async fn carry(near: Arc<UdpSocket>, far: UdpSocket, saw: watch::Sender<Option<(SocketAddr, [u8; 8])>>) {
        let (mut out, mut back) = (vec![0; 65_536], vec![0; 65_536]);
        let mut caller = None;
        loop {
            tokio::select! {
                received = near.recv_from(&mut out) => {
                    let (length, from) = received.unwrap();
                    caller = Some(from);
                    if out[0] & 0x80 == 0 {
                        saw.send_replace(Some((from, out[1..9].try_into().unwrap())));
                    }
                    far.send(&out[..length]).await.unwrap();
                }
                length = far.recv(&mut back) => {
                    near.send_to(&back[..length.unwrap()], caller.unwrap()).await.unwrap();
                }
            }
        }
    }
}

/// What the endpoint at `oracle` answers to a packet of a connection that it does not know.
async fn ask(oracle: &PinnedEndpoint, connection: [u8; 8]) -> Vec<u8> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, oracle.local_address().unwrap().port()));
    let asking = UdpSocket::bind(LOOPBACK).await.unwrap();
    let mut packet = [7; 100];
    packet[0] = 0x40;
    packet[1..9].copy_from_slice(&connection);
    asking.send_to(&packet, address).await.unwrap();
    let mut answer = vec![0; packet.len()];
    let length = timeout(PATIENCE, asking.recv(&mut answer))
        .await
        .unwrap()
        .unwrap();
    answer.truncate(length);
    answer
}

/// Puts the answer of another endpoint of the server's host in the way of the server's connection.
async fn assert_outlives_the_answer_of(oracle: impl FnOnce(&Identity, &PinnedPeer) -> PinnedEndpoint) {
    let (a, b) = (identity("a"), identity("b"));
    let server = listen(&a, &b.as_peer(), LinkConfig::pair());
    let client = dialer(&b, &a.as_peer(), LinkConfig::pair());
    let wire = Wire::to(server.local_address().unwrap()).await;
    let accept = async { server.arrival().await.unwrap().handshake(PATIENCE).await };
    let dial = client.connect(wire.near.local_addr().unwrap(), PATIENCE);
    let (at_server, at_client) = tokio::join!(accept, dial);
    let (at_server, at_client) = (at_server.unwrap(), at_client.unwrap());
    say(&at_client, &at_server).await;

    let (caller, connection) = wire.seen.borrow().unwrap();
    let answer = ask(&oracle(&a, &b.as_peer()), connection).await;
    wire.near.send_to(&answer, caller).await.unwrap();

    // Nothing overtakes on this wire: what is heard came after the answer.
    say(&at_server, &at_client).await;
}

#[tokio::test]
async fn an_endpoint_that_dials_gives_away_nothing_that_ends_a_connection_of_its_host() {
    assert_outlives_the_answer_of(|host, peer| dialer(host, peer, LinkConfig::arbiter())).await;
}

#[tokio::test]
async fn a_listener_gives_away_nothing_that_ends_a_connection_of_another_one_of_its_host() {
    assert_outlives_the_answer_of(|host, peer| listen(host, peer, LinkConfig::state())).await;
}

#[tokio::test]
async fn a_listener_of_the_same_kind_at_another_address_gives_away_nothing_either() {
    assert_outlives_the_answer_of(|host, peer| listen(host, peer, LinkConfig::pair())).await;
}
