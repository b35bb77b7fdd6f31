//! Strangers who only say the first word: anybody can, and in anybody's name.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use lockstep_quic::config::LinkConfig;
use lockstep_quic::dates::Validity;
use lockstep_quic::endpoint::PinnedEndpoint;
use lockstep_quic::identity::Identity;
use lockstep_quic::pinning::Pins;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

const ANYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The first packets of so many connections of a kind. Whoever sends them to a door begins as many handshakes.
pub(crate) fn first_packets(count: usize, config: LinkConfig) -> Vec<Vec<u8>> {
    // A thread of its own, for tests that have a runtime already.
    let collecting = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(collect(count, config))
    });
    collecting.join().unwrap()
}

/// Dials nobody, and keeps what was meant for it.
async fn collect(count: usize, config: LinkConfig) -> Vec<Vec<u8>> {
    let pems = Identity::generate("stranger", Validity::years(1)).unwrap();
    let stranger = Identity::from_pems("stranger", &pems).unwrap();
    let nobody = UdpSocket::bind(ANYWHERE).await.unwrap();
    let address = nobody.local_addr().unwrap();
    let pins = Pins::one(stranger.as_peer());
    let dialer = PinnedEndpoint::dial_only(address, stranger, pins, config).unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..count {
        let dialer = dialer.clone();
        calls.spawn(async move { dialer.connect(address, Duration::from_secs(60)).await });
    }
    let mut first = BTreeMap::new();
    let mut packet = vec![0; 65_536];
    while first.len() < count {
        let length = nobody.recv(&mut packet).await.unwrap();
        // Behind the version: the length of the id that the caller has made up for the other side, and the id.
        let id = packet[6..6 + usize::from(packet[5])].to_vec();
        first.entry(id).or_insert_with(|| packet[..length].to_vec());
    }
    first.into_values().collect()
}
