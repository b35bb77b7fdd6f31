//! A device process as its VMM holds it: the staging rings, the gate and the vhost-user connection of one device.
//!
//! The recorder takes inputs out of it and puts orders in; takeover changes its mode. It never touches guest memory.

use super::unanswered::Unanswered;
use crate::machine::{Exit, Machine};
use crate::virtio::frontend::{FrontEnd, FrontendError};
use crate::virtio::mmio::{DeviceKind, MmioDevice};
use lockstep_protocol::ids::{DeviceId, Head, LogOffset, QueueIndex};
use lockstep_protocol::outbox::Gate;
use lockstep_staging::Fault;
use lockstep_staging::changes::{ChangesReader, PairingId};
use lockstep_staging::gate::{GateWriter, Mode};
use lockstep_staging::message::{DeviceFacts, ImageDigest, Order, Staged, VmmFacts};
use lockstep_staging::vmm_end::{ConnectError, PushError, VmmEnd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a device process may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait at a time for a device process to do something.
const NAP: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};

/// How long the process may take to finish what a driver had asked of it that has reset its device; the guest stands still.
const RESET_WAIT: Duration = Duration::from_secs(1);

/// Why a device process cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Staging could not be set up.
    #[error(transparent)]
    Staging(#[from] ConnectError),
    /// vhost-user could not be set up.
    #[error(transparent)]
    Frontend(#[from] FrontendError),
}

/// Whether a device process is used, as every thread that has to do with it sees it.
#[derive(Clone, Debug)]
pub struct Liveness {
    given: Arc<AtomicBool>,
    kind: DeviceKind,
}

/// One device process.
#[derive(Debug)]
pub struct DevicePort {
    pub(super) id: DeviceId,
    kind: DeviceKind,
    facts: DeviceFacts,
    pub(super) staging: VmmEnd,
    frontend: FrontEnd,
    alive: Liveness,
    /// The frame to be received next; empty when there is none.
    pub(super) frame: Vec<u8>,
    /// Chains the device process is done with and that were not yet given back, per queue.
    pub(super) returned: Vec<u16>,
    unanswered: Unanswered,
}

impl DevicePort {
    /// Connects both sockets of the process that drives device `id`.
    ///
    /// # Errors
    /// When it does not answer, or is another kind of device.
    pub fn connect(id: DeviceId, kind: DeviceKind, vhost: &Path, staging: &Path) -> Result<Self, PortError> {
        Self::connect_and_ask(id, kind, vhost, staging, false)
    }

    /// The same; with `compares_images` a mirrored disk's process reads its image first, see [`Self::image`].
    ///
    /// # Errors
    /// As [`Self::connect`], or when the image cannot be read.
    pub fn connect_and_ask(
        id: DeviceId,
        kind: DeviceKind,
        vhost: &Path,
        staging: &Path,
        compares_images: bool,
    ) -> Result<Self, PortError> {
        let facts = VmmFacts {
            compares_images,
            kind: match kind {
                DeviceKind::Net => lockstep_staging::message::DeviceKind::Net,
                DeviceKind::Blk => lockstep_staging::message::DeviceKind::Blk,
            },
            release: env!("CARGO_PKG_VERSION").into(),
        };
        let (staging, facts) = VmmEnd::connect(staging, &facts, CONNECT_TIMEOUT)?;
        let queues = kind.queues();
        let frontend = FrontEnd::connect(vhost, queues)?;
        Ok(Self {
            id,
            kind,
            facts,
            staging,
            frontend,
            alive: Liveness::new(kind),
            frame: Vec::new(),
            returned: vec![0; queues],
            unanswered: Unanswered::of(kind),
        })
    }

    /// Which device this is.
    #[must_use]
    pub fn id(&self) -> DeviceId {
        self.id
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// The window the guest shall see for it.
    #[must_use]
    pub fn window(&self) -> MmioDevice {
        MmioDevice::new(self.id, self.kind, self.facts.features, self.facts.config.clone())
    }

    /// What must be equal on both hosts about this device.
    #[must_use]
    pub fn facts(&self) -> (&[u8], u64) {
        (&self.facts.config, self.facts.features)
    }

    /// Whether it drives this host's own image of a disk that each host has one of.
    #[must_use]
    pub fn is_mirrored(&self) -> bool {
        self.facts.is_mirrored
    }

    /// What that image held when the process was connected, if it was asked for.
    #[must_use]
    pub fn image(&self) -> Option<&ImageDigest> {
        self.facts.image.as_ref()
    }

    /// Which blocks of that image its process has changed, for whoever copies it.
    #[must_use]
    pub fn changes(&self) -> ChangesReader {
        self.staging.changes()
    }

    /// The two images of a mirrored disk are equal, nothing is in flight, and both get what is ordered from now on.
    pub fn begin_pairing(&self, id: PairingId) {
        if self.is_mirrored() {
            self.staging.begin_pairing(id);
        }
    }

    /// The gate, for the thread that hears acks.
    #[must_use]
    pub fn gate(&self) -> GateWriter {
        self.staging.gate()
    }

    /// Whether the process still answers.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.alive.is_given()
    }

    /// Where others can see whether the process still answers.
    #[must_use]
    pub fn liveness(&self) -> Liveness {
        self.alive.clone()
    }

    /// Tells the process where the queues are, after the guest's driver became ready.
    pub fn activate(&mut self, machine: &Machine) {
        let Some(device) = machine.device(self.id) else {
            return;
        };
        if let Err(error) = self
            .frontend
            .activate(machine.memory(), device.features(), device.rings())
        {
            self.fail(&error);
        }
    }

    /// The same if its driver is at work: the machine came from another host, or an epoch is over.
    pub fn adopt(&mut self, machine: &Machine) {
        if machine.device(self.id).is_some_and(MmioDevice::is_ready) {
            self.activate(machine);
        }
    }

    /// Takes the queues back after the guest reset the device: first the process finishes what it has. An answer to the driver
    /// before could be taken for one to the next, and a chain read from where the next has put its own.
    pub fn deactivate(&mut self) {
        self.finish_orders();
        let queues = self.returned.len();
        self.returned.fill(0);
        self.frame.clear();
        if let Err(error) = self.frontend.deactivate(queues) {
            self.fail(&error);
        }
    }

    fn finish_orders(&mut self) {
        self.flush();
        let deadline = Instant::now() + RESET_WAIT;
        let mut bytes = Vec::new();
        while self.is_alive() && !self.unanswered.is_empty() {
            match self.pop_answer(&mut bytes) {
                Ok(Some(_)) => {}
                Ok(None) if Instant::now() > deadline => {
                    tracing::warn!(device = ?self.kind, "The guest has reset a device that does not come to rest");
                    self.unanswered.forget();
                }
                Ok(None) => self.nap(),
                Err(fault) => self.fail(&fault),
            }
        }
    }

    /// The next thing that the process says of what it was ordered.
    ///
    /// # Errors
    /// When it breaks the rules of staging.
    pub(super) fn pop_answer(&mut self, bytes: &mut Vec<u8>) -> Result<Option<Staged>, Fault> {
        let answer = self.staging.pop_completion(bytes)?;
        if let Some(answer) = &answer {
            self.unanswered.handle_answer(answer);
        }
        Ok(answer)
    }

    /// Makes sure that the next frame, if there is one, is in `frame`.
    pub(super) fn fetch_frame(&mut self) -> bool {
        if self.frame.is_empty() && self.is_alive() {
            match self.staging.pop_frame(&mut self.frame) {
                Ok(popped) => return popped.is_some(),
                Err(fault) => self.fail(&fault),
            }
        }
        self.is_alive() && !self.frame.is_empty()
    }

    /// Orders one chain. Waits while the process is behind with its orders: full means push back.
    pub fn order(&mut self, queue: QueueIndex, head: Head, needs: LogOffset) {
        while self.is_alive() {
            match self.staging.push_order(Order { queue, head, needs }) {
                Ok(()) => return self.unanswered.add(queue, head),
                Err(PushError::Full) => {
                    self.staging.flush_orders();
                    self.nap();
                }
                Err(PushError::Fault(fault)) => self.fail(&fault),
            }
        }
    }

    /// Wakes the process for what was ordered.
    pub fn flush(&self) {
        self.staging.flush_orders();
    }

    /// The last `count` orders are a window's, and all of them need `needs`. Frames cannot leave before that, so their
    /// process is woken by the ack; a disk has reads to begin with.
    pub(super) fn end_orders(&mut self, needs: LogOffset, count: usize) {
        match self.kind {
            DeviceKind::Net => self.staging.defer_orders(needs, count),
            DeviceKind::Blk => self.flush(),
        }
    }

    /// Whether something that the guest asked of the device is in flight.
    pub(super) fn works(&self, machine: &Machine) -> bool {
        let rings = machine.device(self.id).map_or(&[][..], |device| device.rings());
        rings.iter().any(|ring| ring.inflight_len() > 0)
    }

    /// The guest is over: waits until the process has answered everything that is in flight, and drops the answers.
    pub(super) fn finish(&mut self, machine: &Machine, deadline: Instant) {
        let rings = machine.device(self.id).map_or(&[][..], |device| device.rings());
        let mut left: BTreeSet<_> = (0_u16..)
            .zip(rings)
            .flat_map(|(queue, ring)| {
                let queue = QueueIndex::new(queue);
                ring.inflight().into_iter().map(move |head| (queue, head))
            })
            .collect();
        let mut bytes = Vec::new();
        while !left.is_empty() && self.is_alive() && Instant::now() < deadline {
            match self.pop_answer(&mut bytes) {
                Ok(Some(Staged::Completion { queue, head })) => drop(left.remove(&(queue, head))),
                Ok(Some(Staged::Returned { .. })) => {}
                Ok(None) => self.nap(),
                Err(fault) => self.fail(&fault),
            }
        }
    }

    /// Lets the process talk to the outside, everything at once: this host holds its term alone.
    pub fn go_live_alone(&self) {
        let gate = self.gate();
        gate.publish_acked(Gate::ALONE.acked);
        gate.publish_lease(Gate::ALONE.lease_until);
        gate.set_mode(Mode::Live);
    }

    /// The process did what it must not.
    pub(super) fn fail(&mut self, why: &dyn std::error::Error) {
        self.alive.end(why);
    }

    /// Whether the process has something for the guest.
    pub(super) fn has_inputs(&self) -> bool {
        self.is_alive() && self.staging.has_inputs()
    }

    /// Waits until the process did something, or for a moment.
    pub(super) fn nap(&mut self) {
        if self.staging.prepare_sleep() {
            let doorbell = self.staging.doorbell().as_fd();
            // The time-out only bounds how late the end of the process is seen; the doorbell is what ends the wait.
            let _ = poll(&mut [PollFd::new(&doorbell, PollFlags::IN)], Some(&NAP));
        }
        self.staging.wake_up();
    }
}

impl Drop for DevicePort {
    /// The process is free to go.
    fn drop(&mut self) {
        self.alive.given.store(false, Ordering::Relaxed);
    }
}

impl Liveness {
    fn new(kind: DeviceKind) -> Self {
        Self {
            given: Arc::new(AtomicBool::new(true)),
            kind,
        }
    }

    /// Whether it is still used.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.given.load(Ordering::Relaxed)
    }

    /// It is not used any more, for good.
    pub(super) fn end(&self, why: &dyn std::error::Error) {
        if self.given.swap(false, Ordering::Relaxed) {
            tracing::error!(device = ?self.kind, reason = %why, "The device process is not used any more");
        }
    }
}

/// Passes on what the guest's drivers did to their devices in the exit, once.
pub(super) fn follow_driver(ports: &mut [DevicePort], machine: &Machine, exit: &mut Exit) {
    let (ready, reset) = (std::mem::take(&mut exit.ready), std::mem::take(&mut exit.reset));
    let restarted = std::mem::take(&mut exit.restarted);
    for port in ports {
        if restarted || reset.contains(&port.id) {
            port.deactivate();
        }
        if ready.contains(&port.id) {
            port.adopt(machine);
        }
    }
}
