//! A backup's session with its primary, and its log. The run loop of a backup holds the session, the replayer the log.

use super::{Context, STOP_LOOK, alone};
use crate::ft::replay::LogSource;
use crate::monitor::{Monitor, PairProbe, PairView};
use crate::stop::Stop;
use bytes::Bytes;
use lockstep_protocol::ids::{LogOffset, Position, Term};
use lockstep_protocol::record::Record;
use lockstep_protocol::session::{Parting, PeerLost};
use lockstep_protocol::takeover::Takeover;
use lockstep_protocol::time::Instant;
use lockstep_quic::link::{BackupEvents, BackupLink, Delivered, PairConfig, PairError, listen_backup};
use lockstep_staging::gate::boottime;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;

/// How and when the primary was lost.
#[derive(Clone, Debug)]
pub struct Loss {
    /// What happened.
    pub why: PeerLost,
    /// When it counted as lost, on CLOCK_BOOTTIME.
    pub noticed: Instant,
}

/// A backup's session with its primary.
pub struct BackupSide {
    link: Arc<BackupLink>,
    stop: Stop,
    term: Term,
    start: LogOffset,
    counts: Arc<Counts>,
    monitor: Arc<Monitor>,
    noticed: Arc<AtomicU64>,
}

impl BackupSide {
    /// Waits for the primary and agrees with it on everything that must be equal.
    ///
    /// # Errors
    /// When this host cannot listen, or one side refuses the other.
    pub fn listen(config: PairConfig, context: Context) -> Result<Self, PairError> {
        let (term, start) = (config.hello.term, config.hello.start);
        let noticed = Arc::new(AtomicU64::new(0));
        let monitor = Arc::clone(&context.monitor);
        let events = NoteLoss {
            monitor: context.monitor,
            noticed: Arc::clone(&noticed),
            listening: context.listening,
        };
        let link = Arc::new(listen_backup(config, Box::new(events))?);
        Ok(Self {
            link,
            stop: context.stop,
            term,
            start,
            counts: Arc::default(),
            monitor,
            noticed,
        })
    }

    /// The term of the session.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// Where the replayer's records come from.
    #[must_use]
    pub fn source(&self) -> PairSource {
        PairSource {
            link: Arc::clone(&self.link),
            stop: self.stop.clone(),
            applied: self.start,
            counts: Arc::clone(&self.counts),
            monitor: Arc::clone(&self.monitor),
        }
    }

    /// How the status looks at this session.
    #[must_use]
    pub fn probe(&self) -> PairProbe {
        let (link, counts) = (Arc::clone(&self.link), Arc::clone(&self.counts));
        Box::new(move || {
            let received = link.received();
            PairView {
                log_end: received.get(),
                acked: received.get(),
                executed: counts.applied.load(Ordering::Relaxed),
                log_bytes: link.log_bytes(),
                input_bytes: counts.input_bytes.load(Ordering::Relaxed),
                lag_positions: 0,
                lease_until_ns: None,
                rtt_us: Some(u64::try_from(link.rtt().as_micros()).unwrap_or(u64::MAX)),
            }
        })
    }

    /// Whether a record of this log came. Without one this host never was a backup: the term may not even have begun.
    #[must_use]
    pub fn has_log(&self) -> bool {
        self.link.received() > self.start
    }

    /// Waits until a record of this log has come.
    ///
    /// # Errors
    /// When the primary is lost before.
    pub fn await_log(&self) -> Result<(), PeerLost> {
        self.link.wait_log(self.start)
    }

    /// How the primary was lost, once it is.
    #[must_use]
    pub fn loss(&self) -> Option<Loss> {
        let noticed = Instant::from_nanos(self.noticed.load(Ordering::Acquire));
        self.link.lost().map(|why| Loss { why, noticed })
    }

    /// The primary is lost: what is left is to claim. The source and the probe must be gone.
    #[must_use]
    pub fn take_over(self) -> Takeover {
        alone(self.link).into_takeover()
    }

    /// Tells the primary why this side leaves. The source and the probe must be gone.
    pub fn goodbye(self, why: Parting) {
        alone(self.link).leave(why);
    }
}

/// Called by the driver thread of a backup.
struct NoteLoss {
    monitor: Arc<Monitor>,
    noticed: Arc<AtomicU64>,
    listening: Option<SyncSender<()>>,
}

impl BackupEvents for NoteLoss {
    fn listening(&mut self, at: std::net::SocketAddr) {
        tracing::info!(%at, "Waiting for the primary");
        // Whoever waits for this may have gone away meanwhile.
        let _ = self.listening.take().map(|told| told.send(()));
    }

    fn peer_lost(&mut self, why: PeerLost) {
        tracing::warn!(%why, "The primary is lost");
        self.noticed.store(boottime().as_nanos(), Ordering::Release);
        self.monitor.peer_lost(&why);
    }
}

/// The log of a backup.
pub struct PairSource {
    link: Arc<BackupLink>,
    stop: Stop,
    applied: LogOffset,
    counts: Arc<Counts>,
    monitor: Arc<Monitor>,
}

/// What the status wants to know of a replay.
#[derive(Debug, Default)]
struct Counts {
    applied: AtomicU64,
    input_bytes: AtomicU64,
}

impl LogSource for PairSource {
    fn next(&mut self) -> Option<Record<Bytes>> {
        while !self.stop.is_asked() {
            match self.link.wait_record(STOP_LOOK) {
                Delivered::Record(record) => {
                    self.counts
                        .input_bytes
                        .fetch_add(record.input.payload().len() as u64, Ordering::Relaxed);
                    return Some(record);
                }
                Delivered::PeerLost(_) => return None,
                Delivered::Nothing => {}
            }
        }
        None
    }

    fn executed(&mut self, position: Position) {
        self.applied = self.applied.next();
        self.counts.applied.store(self.applied.get(), Ordering::Relaxed);
        self.link.executed(self.applied, position);
    }

    fn diverged(&mut self, at: Position, what: &str) -> bool {
        // First of all: no more acks (I16).
        self.link.diverged(at, what);
        self.monitor.diverged(at, what);
        true
    }

    fn counted(&mut self, hashes: &[u64]) {
        self.link.counted(hashes);
    }

    fn healed(&mut self) {
        self.link.healed();
    }
}
