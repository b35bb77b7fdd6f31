//! What a running node knows about itself, shared between its threads: the vCPU thread notes, the control socket reads.
//!
//! Noting a position costs two relaxed stores, so the vCPU thread does it in every window. Nothing here changes what
//! the node does.

use crate::ft::delta::DeltaCounts;
use crate::ft::lateness::Lateness;
use crate::ft::port::Liveness;
use crate::status::{Device, EVENTS_MAX, Event, Lag, Peer, Role, Spare, Status, Takeover, What};
use crate::transfer::progress::Progress;
use lockstep_protocol::ids::{GuestTime, Position, Term};
use lockstep_protocol::session::PeerLost;
use lockstep_protocol::time::Instant as Moment;
use lockstep_staging::gate::{GateWriter, boottime};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What the pair's machine can tell at any moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct PairView {
    /// Log offset after the last record.
    pub log_end: u64,
    /// Log offset before which the backup holds every record.
    pub acked: u64,
    /// Log offset before which the backup has executed every record.
    pub executed: u64,
    /// Bytes of log so far.
    pub log_bytes: u64,
    /// Bytes of input among them.
    pub input_bytes: u64,
    /// Positions the backup has not reached.
    pub lag_positions: u64,
    /// When the lease is over, in CLOCK_BOOTTIME nanoseconds.
    pub lease_until_ns: Option<u64>,
    /// Round trip of the connection.
    pub rtt_us: Option<u64>,
}

/// Looks at the pair's machine.
pub type PairProbe = Box<dyn Fn() -> PairView + Send>;

/// A device process for the status.
#[derive(Debug)]
pub struct DeviceProbe {
    /// `net` or `blk`.
    pub kind: &'static str,
    /// Its gate, which counts outputs.
    pub gate: GateWriter,
    /// Cleared when the process is not used any more.
    pub alive: Liveness,
    /// Its process id, where this node started it.
    pub pid: Option<u32>,
}

/// The node's own account of itself.
pub struct Monitor {
    vm: String,
    node: String,
    /// Every other node: name and address.
    others: Vec<(String, String)>,
    started: Instant,
    position: AtomicU64,
    guest_time: AtomicU64,
    longest_run_us: AtomicU64,
    longest_wait_us: AtomicU64,
    deltas: AtomicU64,
    delta_bytes: AtomicU64,
    heals: AtomicU64,
    copying: Arc<Progress>,
    slow: Mutex<Slow>,
}

/// What changes rarely.
struct Slow {
    role: Role,
    term: Term,
    /// Name and address.
    peer: (String, String),
    connected: bool,
    lost: Option<String>,
    pair: Option<PairProbe>,
    last_view: PairView,
    devices: Vec<DeviceProbe>,
    takeover: Option<Takeover>,
    divergences: u64,
    divergence: Option<String>,
    events: Vec<Event>,
}

impl Monitor {
    /// The account of a node that just started; the peer is one of the `others`, each of them name and address.
    #[must_use]
    pub fn new(vm: &str, node: &str, peer: (String, String), others: Vec<(String, String)>) -> Arc<Self> {
        let slow = Slow {
            role: Role::Starting,
            term: Term::ZERO,
            peer,
            connected: false,
            lost: None,
            pair: None,
            last_view: PairView::default(),
            devices: Vec::new(),
            takeover: None,
            divergences: 0,
            divergence: None,
            events: Vec::new(),
        };
        let monitor = Arc::new(Self {
            vm: vm.into(),
            node: node.into(),
            others,
            started: Instant::now(),
            position: AtomicU64::new(0),
            guest_time: AtomicU64::new(0),
            longest_run_us: AtomicU64::new(0),
            longest_wait_us: AtomicU64::new(0),
            deltas: AtomicU64::new(0),
            delta_bytes: AtomicU64::new(0),
            heals: AtomicU64::new(0),
            copying: Arc::default(),
            slow: Mutex::new(slow),
        });
        monitor.note(What::Started);
        monitor
    }

    /// The vCPU made another exit.
    pub fn at(&self, position: Position, time: GuestTime) {
        self.position.store(position.get(), Ordering::Relaxed);
        self.guest_time.store(time.get(), Ordering::Relaxed);
    }

    /// How late inputs were at most.
    pub fn late(&self, lateness: &Lateness) {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.longest_run_us
            .store(micros(lateness.longest_run), Ordering::Relaxed);
        self.longest_wait_us
            .store(micros(lateness.longest_wait), Ordering::Relaxed);
    }

    /// So many deltas were made or put in place.
    pub fn deltas(&self, counts: DeltaCounts) {
        self.deltas.store(counts.deltas, Ordering::Relaxed);
        self.delta_bytes.store(counts.bytes, Ordering::Relaxed);
        self.heals.store(counts.heals, Ordering::Relaxed);
    }

    /// The backup's machine was found to be another than the primary's.
    pub fn diverged(&self, at: Position, what: &str) {
        let mut slow = self.slow();
        slow.divergences += 1;
        slow.divergence = Some(format!("at position {at}: {what}"));
        drop(slow);
        self.note(What::Diverged);
    }

    /// Where a copy of the VM counts how far it is.
    pub fn copying(&self) -> &Arc<Progress> {
        &self.copying
    }

    /// The node plays another part from now on.
    pub fn set_role(&self, role: Role, term: Term) {
        let mut slow = self.slow();
        (slow.role, slow.term) = (role, term);
        tracing::info!(?role, %term, "This node has a new role");
    }

    /// Something happened.
    pub fn note(&self, what: What) {
        let event = Event {
            at_unix_ns: unix_ns(),
            at_boot_ns: boottime().as_nanos(),
            what,
        };
        let mut slow = self.slow();
        if slow.events.len() == EVENTS_MAX {
            slow.events.remove(0);
        }
        slow.events.push(event);
        match what {
            // Why it was lost before is of no interest any more.
            What::PeerConnected => (slow.connected, slow.lost) = (true, None),
            What::PeerLost => slow.connected = false,
            _ => {}
        }
    }

    /// The peer counts as lost.
    pub fn peer_lost(&self, why: &PeerLost) {
        self.slow().lost = Some(why.to_string());
        self.note(What::PeerLost);
    }

    /// Another host is the peer from now on.
    pub fn set_peer(&self, peer: (String, String)) {
        let mut slow = self.slow();
        if slow.peer != peer {
            (slow.peer, slow.connected, slow.lost) = (peer, false, None);
        }
    }

    /// The device processes of this node.
    pub fn set_devices(&self, devices: Vec<DeviceProbe>) {
        self.slow().devices = devices;
    }

    /// How to look at the pair; with `None` it is over, and of its last view what it says of the log stays.
    pub fn set_pair(&self, pair: Option<PairProbe>) {
        let mut slow = self.slow();
        if let Some(probe) = &slow.pair {
            slow.last_view = probe();
        }
        // It may have ended before it was noted that it began.
        slow.connected &= pair.is_some();
        slow.pair = pair;
    }

    /// What the takeover took.
    pub fn set_takeover(&self, takeover: Takeover) {
        self.slow().takeover = Some(takeover);
    }

    /// The status as of now.
    #[must_use]
    pub fn status(&self) -> Status {
        let slow = self.slow();
        let pair = slow.pair.as_ref().map(|probe| probe());
        let view = pair.unwrap_or(slow.last_view);
        let gates: Vec<_> = slow.devices.iter().map(|device| device.gate.snapshot()).collect();
        Status {
            release: env!("CARGO_PKG_VERSION").into(),
            vm: self.vm.clone(),
            node: self.node.clone(),
            role: slow.role,
            term: slow.term.get(),
            position: self.position.load(Ordering::Relaxed),
            log_end: view.log_end,
            acked: view.acked,
            executed: view.executed,
            lag: pair.map_or(Lag::default(), |view| Lag {
                records: view.log_end.saturating_sub(view.executed),
                positions: view.lag_positions,
            }),
            held_outputs: gates
                .iter()
                .map(|gate| gate.held.saturating_add(gate.unread))
                .fold(0, u64::saturating_add),
            released_outputs: gates.iter().map(|gate| gate.released).sum(),
            log_bytes: view.log_bytes,
            input_bytes: view.input_bytes,
            lease_ms_left: slow.lease_ms_left(&view, boottime()),
            peer: Some(slow.peer(pair.and_then(|view| view.rtt_us))),
            spares: self
                .others
                .iter()
                .filter(|other| **other != slow.peer)
                .map(spare)
                .collect(),
            devices: slow.devices.iter().map(describe).collect(),
            longest_run_us: self.longest_run_us.load(Ordering::Relaxed),
            longest_wait_us: self.longest_wait_us.load(Ordering::Relaxed),
            deltas: self.deltas.load(Ordering::Relaxed),
            delta_bytes: self.delta_bytes.load(Ordering::Relaxed),
            divergences: slow.divergences,
            divergence: slow.divergence.clone(),
            healed: self.heals.load(Ordering::Relaxed),
            guest_time_ns: self.guest_time.load(Ordering::Relaxed),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            takeover: slow.takeover.clone(),
            copy: self.copying.shown(),
            events: slow.events.clone(),
        }
    }

    /// A thread that panicked while noting leaves an account that is still worth reading.
    fn slow(&self) -> MutexGuard<'_, Slow> {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slow {
    /// The lease of a pair that is over still counts until its end, but not for a host that is alone or has halted.
    fn lease_ms_left(&self, view: &PairView, now: Moment) -> Option<u64> {
        let left = view.lease_until_ns?.saturating_sub(now.as_nanos());
        let counts = match self.pair {
            Some(_) => true,
            None => left > 0 && matches!(self.role, Role::Primary | Role::TakingOver),
        };
        counts.then_some(left / 1_000_000)
    }

    fn peer(&self, rtt_us: Option<u64>) -> Peer {
        Peer {
            node: self.peer.0.clone(),
            address: self.peer.1.clone(),
            connected: self.connected,
            lost: self.lost.clone(),
            rtt_us,
        }
    }
}

/// CLOCK_REALTIME in nanoseconds.
#[must_use]
pub fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn spare((node, address): &(String, String)) -> Spare {
    Spare {
        node: node.clone(),
        address: address.clone(),
    }
}

fn describe(probe: &DeviceProbe) -> Device {
    Device {
        kind: probe.kind.into(),
        alive: probe.alive.is_given(),
        pid: probe.pid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(node: &str) -> (String, String) {
        (node.into(), format!("{node}:7001"))
    }

    fn monitor() -> Arc<Monitor> {
        Monitor::new("shop", "a", named("b"), vec![named("b"), named("c")])
    }

    /// A pair in which a second is left of the lease.
    fn pair() -> Option<PairProbe> {
        let lease_until_ns = Some(boottime().as_nanos() + 1_000_000_000);
        Some(Box::new(move || PairView {
            log_end: 9,
            acked: 8,
            executed: 7,
            log_bytes: 90,
            lag_positions: 3,
            lease_until_ns,
            rtt_us: Some(80),
            ..PairView::default()
        }))
    }

    fn protected() -> Arc<Monitor> {
        let monitor = monitor();
        monitor.note(What::PeerConnected);
        monitor.set_pair(pair());
        monitor.set_role(Role::Primary, Term::new(1));
        monitor
    }

    fn lose(monitor: &Monitor) {
        monitor.peer_lost(&PeerLost::Silent(Duration::from_millis(120)));
        monitor.set_role(Role::TakingOver, Term::new(1));
        monitor.set_pair(None);
    }

    #[test]
    fn a_protected_primary_tells_lease_lag_and_round_trip() {
        let status = protected().status();
        let peer = status.peer.unwrap();
        assert!((1..=1000).contains(&status.lease_ms_left.unwrap()));
        assert_eq!((status.lag.records, status.lag.positions), (2, 3));
        assert_eq!((peer.connected, peer.rtt_us), (true, Some(80)));
    }

    #[test]
    fn a_primary_that_survived_its_backup_tells_of_the_log_and_why_but_of_no_lease_lag_or_round_trip() {
        let monitor = protected();
        lose(&monitor);
        monitor.set_role(Role::Alone, Term::new(2));

        let status = monitor.status();
        let peer = status.peer.unwrap();
        assert_eq!((status.lease_ms_left, status.lag), (None, Lag::default()));
        assert_eq!((peer.connected, peer.rtt_us), (false, None));
        assert_eq!(peer.lost.unwrap(), "The other host was silent for 120ms");
        assert_eq!((status.log_end, status.acked, status.executed), (9, 8, 7));
        assert_eq!(status.log_bytes, 90);
    }

    #[test]
    fn a_primary_that_lost_its_backup_may_speak_until_its_lease_is_over_and_says_so() {
        let monitor = protected();
        lose(&monitor);
        assert!(monitor.status().lease_ms_left.is_some());

        monitor.slow().last_view.lease_until_ns = Some(1);
        assert_eq!(monitor.status().lease_ms_left, None);
    }

    #[test]
    fn a_peer_that_comes_back_is_not_lost_any_more() {
        let monitor = protected();
        lose(&monitor);
        monitor.set_role(Role::Alone, Term::new(2));

        monitor.set_peer(named("b"));
        assert!(monitor.status().peer.unwrap().lost.is_some());
        monitor.set_pair(pair());
        monitor.note(What::PeerConnected);

        let peer = monitor.status().peer.unwrap();
        assert_eq!((peer.connected, peer.lost), (true, None));
    }

    #[test]
    fn a_pair_that_ended_before_it_was_noted_is_not_connected_for_ever() {
        let monitor = monitor();
        monitor.set_pair(pair());
        monitor.note(What::PeerLost);
        monitor.note(What::PeerConnected);
        monitor.set_pair(None);
        assert!(!monitor.status().peer.unwrap().connected);
    }
}
