//! The session with the peer, as the run loop holds it: a log sink for a primary, a log source for a backup.
//!
//! The QUIC driver thread calls the observers made here: acks and leases go straight from it into the gates that the
//! device processes read, with no hop over the vCPU thread. What a lost peer means is decided in [`super::takeover`].

mod backup;

pub use backup::{BackupSide, Loss, PairSource};

use super::gates::Gates;
use super::record::{LogSink, PeerLost as NobodyToLogFor};
use super::wait::Waker;
use crate::monitor::{Monitor, PairProbe, PairView};
use crate::stop::Stop;
use lockstep_protocol::divergence::Patient;
use lockstep_protocol::ids::{LogOffset, Position};
use lockstep_protocol::message::Diverged;
use lockstep_protocol::record::Input;
use lockstep_protocol::session::{Parting, PeerLost};
use lockstep_protocol::takeover::Claiming;
use lockstep_protocol::time::Instant;
use lockstep_quic::link::{PairConfig, PairError, PrimaryEvents, PrimaryLink, Room, connect_primary};
use lockstep_staging::gate::{GateWriter, Mode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

/// How long to wait at a time; only bounds how late a request to stop is seen.
const STOP_LOOK: Duration = Duration::from_millis(100);

/// So many log bytes are sent without waiting for a flush: several packets' worth, so that the wake-up pays.
const SEND_AT: usize = 16 << 10;

/// What the observers need to pass news on.
pub struct Context {
    /// The gates of the device processes.
    pub gates: Vec<GateWriter>,
    /// Ends the sleep of the vCPU thread.
    pub waker: Waker,
    /// The node's account of itself.
    pub monitor: Arc<Monitor>,
    /// Whether somebody asked this process to stop.
    pub stop: Stop,
    /// Told when a backup listens.
    pub listening: Option<SyncSender<()>>,
}

/// A primary's session with its backup.
pub struct PrimarySide {
    link: Arc<PrimaryLink>,
    gates: Vec<GateWriter>,
    lost: Arc<AtomicBool>,
    astray: Arc<Astray>,
}

impl PrimarySide {
    /// Reaches the backup and agrees with it on everything that must be equal.
    ///
    /// # Errors
    /// When it cannot be reached, or one side refuses the other.
    pub fn connect(config: PairConfig, context: Context) -> Result<Self, PairError> {
        let (lost, astray) = (Arc::<AtomicBool>::default(), Arc::<Astray>::default());
        let events = PublishAcks {
            gates: Gates::of_primary(context.gates.clone()),
            waker: context.waker,
            monitor: context.monitor,
            lost: Arc::clone(&lost),
            astray: Arc::clone(&astray),
        };
        tracing::info!(at = %config.address, "Looking for the backup");
        let link = Arc::new(connect_primary(config, Box::new(events))?);
        Ok(Self {
            link,
            gates: context.gates,
            lost,
            astray,
        })
    }

    /// Lets the device processes talk to the outside, as far as acks and lease allow.
    pub fn open_gates(&self) {
        self.gates.iter().for_each(|gate| gate.set_mode(Mode::Live));
    }

    /// Where the recorder's records go.
    #[must_use]
    pub fn sink(&self) -> PairSink {
        PairSink {
            link: Arc::clone(&self.link),
            lost: Arc::clone(&self.lost),
            astray: Arc::clone(&self.astray),
            unsent: false,
            silent: false,
        }
    }

    /// How the status looks at this session.
    #[must_use]
    pub fn probe(&self) -> PairProbe {
        let link = Arc::clone(&self.link);
        Box::new(move || {
            let primary = link.lock();
            PairView {
                log_end: primary.end().get(),
                acked: primary.acked().get(),
                executed: primary.executed().get(),
                log_bytes: primary.log_bytes(),
                input_bytes: primary.input_bytes(),
                lag_positions: primary.position().since(primary.executed_position()),
                lease_until_ns: Some(primary.lease_until().as_nanos()),
                rtt_us: Some(u64::try_from(link.rtt().as_micros()).unwrap_or(u64::MAX)),
            }
        })
    }

    /// Where the log ends now.
    #[must_use]
    pub fn log_end(&self) -> LogOffset {
        self.link.lock().end()
    }

    /// The backup is lost: what is left is to claim. The sink and the probe must be gone.
    #[must_use]
    pub fn suspect(self) -> Claiming {
        alone(self.link).into_claiming()
    }

    /// Tells the backup why this side leaves, and waits until it knows or is gone. The sink and the probe must be gone.
    pub fn goodbye(self, why: Parting) {
        alone(self.link).leave(why);
    }
}

/// The only holder of a link may end it.
fn alone<T>(link: Arc<T>) -> T {
    Arc::into_inner(link).expect("the run loop drops sink, source and probe before it ends a session")
}

/// What the vCPU thread asks in every window of a backup that may have diverged.
#[derive(Debug, Default)]
struct Astray {
    /// It has, and the delta that heals it is not in the log yet.
    known: AtomicBool,
    /// That delta can be made.
    heal_due: AtomicBool,
}

/// Called by the driver thread of a primary.
struct PublishAcks {
    gates: Gates,
    waker: Waker,
    monitor: Arc<Monitor>,
    lost: Arc<AtomicBool>,
    astray: Arc<Astray>,
}

impl PrimaryEvents for PublishAcks {
    fn acked(&mut self, upto: LogOffset) {
        self.gates.publish_acked(upto);
    }

    fn lease(&mut self, until: Instant) {
        self.gates.publish_lease(until);
    }

    fn diverged(&mut self, found: &Diverged) {
        tracing::warn!(at = %found.position, what = %found.what, "The backup has diverged; outputs wait until it is healed");
        self.astray.known.store(true, Ordering::Release);
        self.monitor.diverged(found.position, &found.what.to_string());
    }

    fn heal_due(&mut self) {
        self.astray.heal_due.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn peer_lost(&mut self, why: PeerLost) {
        tracing::warn!(%why, "The backup is lost");
        self.monitor.peer_lost(&why);
        self.lost.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// The log of a primary.
pub struct PairSink {
    link: Arc<PrimaryLink>,
    lost: Arc<AtomicBool>,
    astray: Arc<Astray>,
    /// Whether something was appended since the driver was last told.
    unsent: bool,
    /// The driver is not told of anything any more.
    silent: bool,
}

impl PairSink {
    /// Appends `inputs`; the last one closes the window if `closes`.
    ///
    /// # Errors
    /// When the backup is lost; nothing was appended then.
    pub(super) fn append_part(
        &mut self,
        position: Position,
        inputs: &[Input<&[u8]>],
        closes: bool,
    ) -> Result<LogOffset, NobodyToLogFor> {
        // Full means push back: the vCPU stands in its window until the backup holds more of the log.
        loop {
            match self.link.wait_room(STOP_LOOK) {
                Room::Open => break,
                // A window smaller than `SEND_AT` may be full of what nobody was told to send.
                Room::Full if !self.link.lock().may_be_acked() => {
                    tracing::error!(
                        "The log is full before the backup could be healed; the backup is given up"
                    );
                    return Err(NobodyToLogFor);
                }
                Room::Full => self.flush(),
                Room::Lost(_) => return Err(NobodyToLogFor),
            }
        }
        let mut primary = self.link.lock();
        let start = primary.append_window(position, closes, inputs);
        let pause = primary.slowdown();
        let much = primary.unsent_bytes() >= SEND_AT;
        drop(primary);
        self.unsent = true;
        if much {
            self.flush();
        }
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        Ok(start)
    }

    /// For the stories of a host that dies with a part of its log unsent: no record leaves this host from now on.
    pub(super) fn fall_silent(&mut self) {
        self.silent = true;
    }

    /// How much of it the backup holds.
    pub(super) fn acked(&self) -> LogOffset {
        self.link.lock().acked()
    }
}

impl LogSink for PairSink {
    fn append(&mut self, position: Position, inputs: &[Input<&[u8]>]) -> Result<LogOffset, NobodyToLogFor> {
        self.append_part(position, inputs, true)
    }

    fn flush(&mut self) {
        if std::mem::take(&mut self.unsent) && !self.silent {
            self.link.notify();
        }
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    fn has_equal_backup(&self) -> bool {
        !self.astray.known.load(Ordering::Acquire)
    }

    fn wants_heal(&self) -> bool {
        self.astray.heal_due.load(Ordering::Acquire)
    }

    fn poll_heal(&mut self) -> Option<Patient> {
        self.astray.heal_due.store(false, Ordering::Release);
        self.link.lock().poll_heal()
    }

    fn treat(&mut self, position: Position, delta: &[Input<&[u8]>]) -> Result<(), NobodyToLogFor> {
        if self.is_lost() {
            return Err(NobodyToLogFor);
        }
        let mut primary = self.link.lock();
        primary.append_window(position, false, delta);
        primary.handle_treated();
        // Before the backup can say anything of it.
        self.astray.known.store(false, Ordering::Release);
        drop(primary);
        self.unsent = true;
        self.flush();
        Ok(())
    }

    fn end(&self) -> LogOffset {
        self.link.lock().end()
    }
}
