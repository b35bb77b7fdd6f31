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
            What::PeerConnected => slow.connected = true,
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

    /// How to look at the pair; `None` keeps the last view.
    pub fn set_pair(&self, pair: Option<PairProbe>) {
        let mut slow = self.slow();
        if let Some(probe) = &slow.pair {
            slow.last_view = probe();
        }
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
        let view = slow.pair.as_ref().map_or(slow.last_view, |probe| probe());
        let now = boottime().as_nanos();
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
            lag: Lag {
                records: view.log_end.saturating_sub(view.executed),
                positions: view.lag_positions,
            },
            held_outputs: gates
                .iter()
                .map(|gate| gate.held.saturating_add(gate.unread))
                .fold(0, u64::saturating_add),
            released_outputs: gates.iter().map(|gate| gate.released).sum(),
            log_bytes: view.log_bytes,
            input_bytes: view.input_bytes,
            lease_ms_left: view
                .lease_until_ns
                .map(|until| until.saturating_sub(now) / 1_000_000),
            peer: Some(Peer {
                node: slow.peer.0.clone(),
                address: slow.peer.1.clone(),
                connected: slow.connected,
                lost: slow.lost.clone(),
                rtt_us: view.rtt_us,
            }),
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
