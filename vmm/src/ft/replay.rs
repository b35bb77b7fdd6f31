//! The window of a backup's machine: the records of this position enter, nothing else does.
//!
//! The run loop of a backup calls [`Replayer::window`] after every exit. Which record enters when, and that a backup never
//! runs past a window that the primary has not closed, is decided by the protocol's [`Follower`]. It orders nothing from
//! device processes but what a mirrored disk has to do as well (`mirror.rs`), and reads no clock.

use super::delta::{self, DeltaCounts, DeltaTaker};
use super::digest::{self, Difference};
use super::flip::Flip;
use super::inject::InjectError;
use super::mirror::{Mirror, MirrorError};
use super::port::{DevicePort, follow_driver};
use crate::machine::{Exit, Machine};
use bytes::Bytes;
use lockstep_protocol::ids::Position;
use lockstep_protocol::record::{Input, Record};
use lockstep_protocol::replay::{Admitted, Follower, Misplaced};
use lockstep_staging::changes::PairingId;

/// Where the records of a backup come from.
pub trait LogSource: Send {
    /// The next record, in order. Waits for it; `None` when the peer is lost and every record it sent was delivered.
    fn next(&mut self) -> Option<Record<Bytes>>;

    /// The machine executed the last delivered record and stands at `position`.
    fn executed(&mut self, position: Position);

    /// The machine is not the primary's any more: `what` was found at `at`. Nothing is acked or claimed from here on. Whether
    /// a delta that heals may come.
    fn diverged(&mut self, at: Position, what: &str) -> bool;

    /// The pages of a machine that has diverged come to this.
    fn counted(&mut self, hashes: &[u64]);

    /// A delta made it the primary's again.
    fn healed(&mut self);
}

/// Where a window ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// The primary closed it: run on.
    Closed,
    /// The log ends here and the primary is lost; the window is still open.
    LogEnds,
}

/// Why the replay cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// This machine is no longer the primary's machine.
    #[error(transparent)]
    Diverged(#[from] Diverged),
    /// This host's disk image is no longer the primary's.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// A delta does not fit.
    #[error("At position {at} a delta cannot be put in place: {why}")]
    Delta {
        /// Where the machine is.
        at: Position,
        /// Why.
        why: String,
    },
}

/// This machine is no longer the primary's machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Diverged {
    /// A record belongs elsewhere.
    #[error(transparent)]
    Misplaced(#[from] Misplaced),
    /// A record does not fit.
    #[error("At position {at} a record does not fit the machine")]
    Misfit {
        /// Where the machine is.
        at: Position,
        /// Why.
        #[source]
        source: InjectError,
    },
    /// A digest is not that of this machine.
    #[error("At position {at} {found}")]
    Differs {
        /// Where the machine is.
        at: Position,
        /// How it differs.
        found: Difference,
    },
    /// The guest ended, that of the primary did not.
    #[error("The guest ended at position {0}, that of the primary did not")]
    Ended(Position),
    /// The guest makes no exit, that of the primary did.
    #[error("The guest makes no exit after position {0}, that of the primary did")]
    Stuck(Position),
    /// KVM cannot run it any more.
    #[error("KVM cannot run the guest on from position {0}")]
    Broken(Position),
}

/// Injects the log into a backup's machine.
pub struct Replayer {
    source: Box<dyn LogSource>,
    ports: Vec<DevicePort>,
    mirror: Option<Mirror>,
    follower: Follower,
    taker: DeltaTaker,
    counts: DeltaCounts,
    /// A mark entered in the open window: the primary's guest called for an output or ended in it.
    marked: bool,
    flip: Option<Flip>,
}

impl Replayer {
    /// A replayer of `source` for a machine with so much memory; the `ports` are kept ready for the day this host is
    /// promoted.
    #[must_use]
    pub fn new(source: Box<dyn LogSource>, ports: Vec<DevicePort>, memory_bytes: u64) -> Self {
        Self {
            source,
            mirror: Mirror::of(&ports),
            ports,
            follower: Follower::new(delta::bytes_max(memory_bytes)),
            taker: DeltaTaker::default(),
            counts: DeltaCounts::default(),
            marked: false,
            flip: None,
        }
    }

    /// For tests: a bit of the machine flips when so many records have entered.
    #[must_use]
    pub fn with_flip(mut self, flip: Option<Flip>) -> Self {
        self.flip = flip;
        self
    }

    /// For a machine that was copied from another one in the middle of a log: holds what deltas said of pages, as `other`
    /// does.
    #[must_use]
    pub fn holding_as(mut self, other: &Self) -> Self {
        self.taker = other.taker.clone();
        self
    }

    /// Whether the machine is known not to be the primary's.
    #[must_use]
    pub fn is_astray(&self) -> bool {
        self.follower.is_astray()
    }

    /// The device processes.
    #[must_use]
    pub fn ports(&self) -> &[DevicePort] {
        &self.ports
    }

    /// The deltas that were put in place.
    #[must_use]
    pub fn deltas(&self) -> DeltaCounts {
        self.counts
    }

    /// The guest is over, or the log: waits until the own image has all that the guest has asked for (I12).
    ///
    /// # Errors
    /// When it never will have it.
    pub fn settle(&mut self) -> Result<(), MirrorError> {
        match self.mirrored() {
            Some((mirror, port)) => mirror.settle(port),
            None => Ok(()),
        }
    }

    /// Ends the replay and hands the device processes on. [`Self::settle`] comes before.
    #[must_use]
    pub fn into_ports(self) -> Vec<DevicePort> {
        self.ports
    }

    /// Lets every record of the open window enter, and waits until a record of a later one is here: before that the
    /// primary may still be in the same run, and a delta may come (I3).
    ///
    /// # Errors
    /// When a record cannot belong to this machine, or the own disk image is not the primary's any more.
    pub fn window(&mut self, machine: &mut Machine, exit: &mut Exit) -> Result<Replayed, ReplayError> {
        self.follow_guest(machine, exit)?;
        self.marked = false;
        let mut called = exit.calls();
        loop {
            let at = machine.position();
            let Some(record) = self.follower.poll_kept().or_else(|| self.source.next()) else {
                return Ok(Replayed::LogEnds);
            };
            let closes = record.closes;
            match self.follower.handle_record(record, at, called) {
                Ok(Admitted::Later) if exit.end.is_some() => self.diverge(machine, &Diverged::Ended(at))?,
                Ok(Admitted::Later) => return Ok(Replayed::Closed),
                Ok(Admitted::Kept | Admitted::Dropped) => self.source.executed(at),
                Ok(Admitted::Delta { pages, end, heals }) => {
                    self.become_like_primary(machine, &pages, &end, heals)?;
                    // The exit is long over there; one at the end of an epoch comes with the delta.
                    *exit = machine.take_exit();
                    (called, self.marked) = (exit.calls(), false);
                    self.follow_guest(machine, exit)?;
                }
                Ok(Admitted::Enters(record)) => {
                    self.enter(machine, &record)?;
                    // Something came, so the guest is awake. A host that goes live here runs on as the primary did.
                    exit.idle = None;
                    if exit.end.is_some() && self.marked && closes {
                        return Ok(Replayed::Closed);
                    }
                }
                Err(misplaced) => {
                    self.diverge(machine, &misplaced.into())?;
                    self.source.executed(at);
                }
            }
        }
    }

    /// The machine is not the primary's any more: it stays where it is until a delta heals it.
    ///
    /// # Errors
    /// When no delta can: its disk image is no longer the primary's either, or it was being healed, or nobody is there to.
    pub fn diverge(&mut self, machine: &Machine, why: &Diverged) -> Result<(), ReplayError> {
        // What a diverged guest did to an image of its own is not known.
        if self.mirror.is_some() || self.is_astray() {
            return Err((*why).into());
        }
        let what = why.to_string();
        if !self.source.diverged(machine.position(), &what) {
            return Err((*why).into());
        }
        tracing::error!(%what, "This host's copy of the VM has diverged; it protects nothing until it is healed");
        self.source.counted(&digest::census(machine.memory()));
        self.follower.stray();
        Ok(())
    }

    fn become_like_primary(
        &mut self,
        machine: &mut Machine,
        pages: &[Bytes],
        end: &[u8],
        heals: bool,
    ) -> Result<(), ReplayError> {
        let at = machine.position();
        let applied = self.taker.apply(machine, pages, end, heals);
        applied.map_err(|error| ReplayError::Delta {
            at,
            why: error.to_string(),
        })?;
        self.counts.add(pages, end);
        self.source.executed(machine.position());
        if heals {
            // What its drivers did since it strayed no exit tells.
            for port in &mut self.ports {
                port.deactivate();
                port.adopt(machine);
            }
            self.counts.heals += 1;
            self.source.healed();
            tracing::warn!(position = %machine.position(), "This host's copy of the VM is healed");
        }
        Ok(())
    }

    /// Passes on what the guest did in the exit, once: to its devices, and what it asks of a mirrored disk.
    fn follow_guest(&mut self, machine: &Machine, exit: &mut Exit) -> Result<(), MirrorError> {
        if let Some((mirror, port)) = self.mirrored()
            && exit.reset.contains(&mirror.device())
        {
            mirror.settle(port)?;
        }
        follow_driver(&mut self.ports, machine, exit);
        if let Some((mirror, port)) = self.mirrored() {
            let device = mirror.device();
            for kick in exit.kicks.iter().filter(|kick| kick.device == device) {
                mirror.order(port, kick);
            }
        }
        Ok(())
    }

    fn mirrored(&mut self) -> Option<(&mut Mirror, &mut DevicePort)> {
        let mirror = self.mirror.as_mut()?;
        let device = mirror.device();
        let port = self.ports.iter_mut().find(|port| port.id() == device)?;
        Some((mirror, port))
    }

    fn enter(&mut self, machine: &mut Machine, record: &Record<Bytes>) -> Result<(), ReplayError> {
        let at = machine.position();
        let input = record.input.borrowed();
        if let Some((mirror, port)) = self.mirrored() {
            mirror.await_input(port, &input)?;
            if let Input::PowerOn { seed } = input {
                port.begin_pairing(pairing_of(&seed));
            }
        }
        self.marked |= matches!(input, Input::Mark);
        let differs = match &input {
            Input::Digest { bytes } => compare(machine, bytes),
            input => machine
                .inject(input)
                .err()
                .map(|source| Diverged::Misfit { at, source }),
        };
        if let Some(why) = differs {
            self.diverge(machine, &why)?;
        }
        self.source.executed(at);
        if let Some(flip) = &mut self.flip {
            flip.after_record(machine);
        }
        Ok(())
    }
}

fn compare(machine: &Machine, bytes: &[u8]) -> Option<Diverged> {
    let at = machine.position();
    match digest::check(machine, bytes) {
        Ok(found) => found.map(|found| Diverged::Differs { at, found }),
        Err(_) => Some(Diverged::Broken(at)),
    }
}

/// The name of the pairing that begins when a VM is powered on: both hosts have its seed and nobody else has.
#[must_use]
pub fn pairing_of(seed: &[u8; 32]) -> PairingId {
    let digest = blake3::hash(seed);
    let half = digest.as_bytes().first_chunk();
    *half.expect("a digest is longer than a name")
}
