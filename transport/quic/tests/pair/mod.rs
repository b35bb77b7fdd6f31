//! Two halves of a pair in one process: two driver threads, real sockets on loopback, fresh certificates.

mod relay;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use lockstep_protocol::{
    Hello, Input, Instant, LogOffset, NodeName, PeerLost, Position, Role, Timing, WindowLimit,
};
use lockstep_quic::dates::Validity;
use lockstep_quic::identity::{Identity, PinnedPeer};
use lockstep_quic::link::{
    BackupEvents, BackupLink, PairConfig, PairError, PrimaryEvents, PrimaryLink, connect_primary,
    listen_backup,
};

pub(crate) use relay::Relay;

/// Longer than anything here takes, short enough to see a test hang.
pub(crate) const LONG: Duration = Duration::from_secs(10);

/// The test machine may be busy with other tests: nobody is lost but who is gone.
pub(crate) const PATIENT: Timing = Timing {
    heartbeat: Duration::from_millis(20),
    timeout: Duration::from_secs(2),
    lease: Duration::from_secs(1),
};

/// What the primary's driver reported.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    Acked(LogOffset),
    Lease(Instant),
    Lost(PeerLost),
}

struct Reporter(Sender<Event>);

impl PrimaryEvents for Reporter {
    fn acked(&mut self, upto: LogOffset) {
        let _ = self.0.send(Event::Acked(upto));
    }
    fn lease(&mut self, until: Instant) {
        let _ = self.0.send(Event::Lease(until));
    }
    fn peer_lost(&mut self, why: PeerLost) {
        let _ = self.0.send(Event::Lost(why));
    }
}

struct Door(Sender<SocketAddr>);

impl BackupEvents for Door {
    fn listening(&mut self, at: SocketAddr) {
        let _ = self.0.send(at);
    }
    fn peer_lost(&mut self, _: PeerLost) {}
}

/// A host with a certificate of its own, and what it says in its hello.
pub(crate) struct Host {
    pub(crate) identity: Identity,
    pub(crate) hello: Hello,
}

impl Host {
    pub(crate) fn new(node: &str, role: Role) -> Self {
        let pems = Identity::generate(node, Validity::years(1)).unwrap();
        let hello = Hello {
            timing: PATIENT,
            ..Hello::bare(NodeName::new(node).unwrap(), role)
        };
        Self {
            identity: Identity::from_pems(node, &pems).unwrap(),
            hello,
        }
    }

    pub(crate) fn config(&self, address: SocketAddr, peer: PinnedPeer) -> PairConfig {
        PairConfig {
            address,
            identity: self.identity.clone(),
            peer,
            hello: self.hello.clone(),
            window: WindowLimit::default(),
            patience: LONG,
        }
    }
}

/// The two hosts `a` (primary) and `b` (backup).
pub(crate) fn hosts() -> (Host, Host) {
    (Host::new("a", Role::Primary), Host::new("b", Role::Backup))
}

pub(crate) struct Pair {
    pub(crate) primary: PrimaryLink,
    pub(crate) backup: BackupLink,
    pub(crate) events: Receiver<Event>,
}

/// What the primary gets, what the backup gets, and what the primary's driver reports.
pub(crate) type Meeting = (
    Result<PrimaryLink, PairError>,
    Result<BackupLink, PairError>,
    Receiver<Event>,
);

/// What each side gets when the two hosts meet.
pub(crate) fn meet(a: &Host, b: &Host, window: WindowLimit) -> Meeting {
    meet_over(a, b, window, |address| address)
}

fn meet_over(
    a: &Host,
    b: &Host,
    window: WindowLimit,
    wire: impl FnOnce(SocketAddr) -> SocketAddr,
) -> Meeting {
    let (door, opened) = channel();
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = b.config(anywhere, a.identity.as_peer());
    let listening = thread::spawn(move || listen_backup(config, Box::new(Door(door))));
    let address = wire(opened.recv().unwrap());
    let (reporter, events) = channel();
    let config = PairConfig {
        window,
        ..a.config(address, b.identity.as_peer())
    };
    let primary = connect_primary(config, Box::new(Reporter(reporter)));
    (primary, listening.join().unwrap(), events)
}

pub(crate) fn pair_with(window: WindowLimit) -> Pair {
    let (a, b) = hosts();
    let (primary, backup, events) = meet(&a, &b, window);
    Pair {
        primary: primary.unwrap(),
        backup: backup.unwrap(),
        events,
    }
}

/// A pair whose primary comes after `crowd` has been at the backup's door.
pub(crate) fn pair_behind(crowd: impl FnOnce(SocketAddr)) -> Pair {
    let (a, b) = hosts();
    let (primary, backup, events) = meet_over(&a, &b, WindowLimit::default(), |address| {
        crowd(address);
        address
    });
    Pair {
        primary: primary.unwrap(),
        backup: backup.unwrap(),
        events,
    }
}

/// A pair with the default timing, whose wire can be cut.
pub(crate) fn pair_with_wire() -> (Pair, Relay) {
    let (mut a, mut b) = hosts();
    a.hello.timing = Timing::default();
    b.hello.timing = Timing::default();
    let mut wire = None;
    let (primary, backup, events) = meet_over(&a, &b, WindowLimit::default(), |address| {
        wire.insert(Relay::new(address)).address
    });
    let pair = Pair {
        primary: primary.unwrap(),
        backup: backup.unwrap(),
        events,
    };
    (pair, wire.unwrap())
}

pub(crate) fn pair() -> Pair {
    pair_with(WindowLimit::default())
}

/// The sentences with which two hosts refuse each other.
pub(crate) fn refusals(a: &Host, b: &Host) -> (String, String) {
    let (primary, backup, _) = meet(a, b, WindowLimit::default());
    (primary.unwrap_err().to_string(), backup.unwrap_err().to_string())
}

impl Pair {
    /// Something was typed at the console in window `position`.
    pub(crate) fn append(&self, position: u64, typed: &[u8]) -> LogOffset {
        let input = Input::Console { bytes: typed };
        let after = self.primary.lock().append(Position::new(position), true, input);
        self.primary.notify();
        after
    }

    /// Waits for the first report of which `wanted` is true.
    pub(crate) fn report(&self, wanted: impl Fn(&Event) -> bool) -> Event {
        let deadline = std::time::Instant::now() + LONG;
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let event = self
                .events
                .recv_timeout(left)
                .expect("the driver reports in time");
            if wanted(&event) {
                return event;
            }
        }
    }

    pub(crate) fn loss(&self) -> PeerLost {
        match self.report(|event| matches!(event, Event::Lost(_))) {
            Event::Lost(why) => why,
            other => unreachable!("{other:?} is no loss"),
        }
    }
}

/// An address on which nobody listens.
pub(crate) fn nowhere() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}
