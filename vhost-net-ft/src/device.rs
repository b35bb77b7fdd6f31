//! The device: tap, queues' halves, staging listener and sink, and what each wake-up does with them.
//!
//! Owned by `backend.rs` behind one lock; one worker thread runs it. It outlives front-ends and VMMs. Whatever a guest,
//! a front-end or a VMM does wrong ends here in a broken queue or an ended session, never in an error of the worker.

use std::error::Error;
use std::io;
use std::path::Path;

use lockstep_staging::{AcceptError, BindError, DeviceFacts, DeviceListener, Doorbell, Mode};
use thiserror::Error;
use vhost_user_backend::VringT;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::QueueT;
use vm_memory::GuestAddressSpace;

use crate::frame::{HEADER, Mac, header_of};
use crate::limits::QUEUES;
use crate::queue::{AtomicMemory, BrokenQueue, PlainQueue, Ring, descriptor_table};
use crate::rx::{Burst, Rx};
use crate::sentence::sentence;
use crate::session::{Chains, Session, Settled};
use crate::sink::Sink;
use crate::tap::{OpenError, Tap};
use crate::tx::Tx;
use crate::wakes::{Wake, Wakes};

/// Why the device could not be made.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// No tap.
    #[error(transparent)]
    Tap(#[from] OpenError),
    /// No staging socket.
    #[error(transparent)]
    Staging(#[from] BindError),
    /// The kernel has no descriptors left.
    #[error("Cannot make the descriptors to wait on")]
    Wakes(#[from] io::Error),
}

/// One network device.
#[derive(Debug)]
pub struct Device {
    tap_name: String,
    /// Closed while another host is live and after it broke.
    tap: Option<Tap>,
    tap_watched: bool,
    wakes: Wakes,
    again: Doorbell,
    staging: Option<DeviceListener>,
    facts: DeviceFacts,
    mac: Option<Mac>,
    memory: Option<AtomicMemory>,
    /// What the driver can do; missing until it says so.
    acked: Option<u64>,
    sink: Sink,
    rx: Rx,
    tx: Tx,
    /// Queues that a guest or a front-end broke.
    broken: [bool; QUEUES],
}

impl Device {
    /// A device on the tap `tap_name`, which a VMM may protect through `staging`.
    pub fn new(
        tap_name: &str,
        tap: Tap,
        staging: Option<&Path>,
        facts: DeviceFacts,
        mac: Option<Mac>,
    ) -> Result<Self, DeviceError> {
        let wakes = Wakes::new()?;
        let again = Doorbell::new()?;
        wakes.watch(&again, Wake::Again)?;
        let staging = staging.map(DeviceListener::bind).transpose()?;
        if let Some(listener) = &staging {
            wakes.watch(listener, Wake::StagingConnect)?;
        }
        Ok(Self {
            tap_name: tap_name.to_owned(),
            tap: Some(tap),
            tap_watched: false,
            wakes,
            again,
            staging,
            facts,
            mac,
            memory: None,
            acked: None,
            sink: Sink::Plain,
            rx: Rx::default(),
            tx: Tx::default(),
            broken: [false; QUEUES],
        })
    }

    /// What to register with whoever waits.
    pub fn wakes(&self) -> &Wakes {
        &self.wakes
    }

    /// The facts that a VMM is told.
    pub fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    /// A new front-end is about to connect: what the last one set up is gone.
    pub fn forget_front_end(&mut self) {
        self.memory = None;
        self.reset();
    }

    /// A front-end is here. If a VMM was and is gone, it is an ordinary one. A tap that was given up, as it broke or as
    /// another host was live, is taken again for it.
    pub fn meet_front_end(&mut self) {
        // A VMM may have left just before, and nobody has looked since.
        self.hear_hangup();
        if matches!(self.sink, Sink::Over) {
            self.sink = Sink::Plain;
        }
        if matches!(self.sink, Sink::Plain)
            && let Err(error) = self.reopen_tap()
        {
            tracing::error!(
                error = &error as &dyn Error,
                "The tap cannot be had again; the guest is without a network until the next connection"
            );
        }
    }

    /// The driver starts over.
    pub fn reset(&mut self) {
        self.broken = [false; QUEUES];
        self.acked = None;
        self.suit_driver();
    }

    /// What the driver can do.
    pub fn set_acked_features(&mut self, acked: u64) {
        self.acked = Some(acked);
        self.suit_driver();
    }

    fn suit_driver(&mut self) {
        let mergeable = self.acked.unwrap_or(0) & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        self.rx.reset(mergeable, self.header());
        self.set_up_tap();
    }

    /// Bytes of the header before each frame.
    fn header(&self) -> usize {
        self.acked.map_or(HEADER, header_of)
    }

    /// The front-end shared other memory.
    pub fn set_memory(&mut self, memory: AtomicMemory) {
        self.memory = Some(memory);
    }

    /// The front-end stops a queue; when this returns nothing of it is in our hands.
    pub fn stop_queue(&mut self, queue: usize) {
        if let Some(broken) = self.broken.get_mut(queue) {
            *broken = false;
        }
    }

    /// Every way to wake, and the one thing each does.
    pub fn on_wake(&mut self, wake: Wake, rings: &[Ring]) {
        self.serve(wake, rings);
        self.settle(rings);
    }

    fn serve(&mut self, wake: Wake, rings: &[Ring]) {
        match wake {
            Wake::RxKick => self.offer_buffers(rings),
            Wake::TxKick => self.transmit(rings),
            Wake::Own => self.wakes.due().for_each(|due| self.serve(due, rings)),
            Wake::Tap => self.receive(rings),
            Wake::StagingConnect => self.connect(rings),
            // What it rang for is found by settling.
            Wake::StagingDoorbell => self.sink.session().into_iter().for_each(Session::hear_doorbell),
            Wake::StagingHangup => self.hear_hangup(),
            Wake::Announce => self.sink.session().into_iter().for_each(Session::announce_again),
            Wake::Again => self.go_on(rings),
        }
    }

    /// Plain: buffers came, for a frame that waits for them or for those that wait in the tap.
    fn offer_buffers(&mut self, rings: &[Ring]) {
        self.watch_tap(true);
        self.receive(rings);
    }

    /// Plain: sends what the driver made available. A protected VM's kicks go to its VMM.
    fn transmit(&mut self, rings: &[Ring]) {
        let (Sink::Plain, Some(tap), Some(memory)) = (&self.sink, &self.tap, &self.memory) else {
            return;
        };
        let memory = memory.memory();
        let ring = &rings[Wake::TxKick as usize];
        let broken = &mut self.broken[Wake::TxKick as usize];
        let Some(mut queue) = PlainQueue::lock(ring, &memory).filter(|_| !*broken) else {
            return;
        };
        match self.tx.send_ready(&mut queue, tap) {
            Ok(true) => self.again.ring(),
            Ok(false) => {}
            Err(error) => mark_broken(broken, "transmit", &error),
        }
    }

    fn go_on(&mut self, rings: &[Ring]) {
        self.again.drain();
        self.transmit(rings);
    }

    /// The tap has frames: takes them where they have somewhere to go, or stops looking at it.
    fn receive(&mut self, rings: &[Ring]) {
        let Some(tap) = &self.tap else { return };
        let burst = match &mut self.sink {
            Sink::Protected(session) => match session.receive(&mut self.rx, tap) {
                Ok(burst) => burst,
                Err(error) => return self.end_session(&sentence(&error)),
            },
            Sink::Plain => self.deliver(rings),
            Sink::Over => Burst::NoRoom,
        };
        match burst {
            Burst::Empty | Burst::More => {}
            Burst::NoRoom => self.watch_tap(false),
            Burst::NoTap(error) => self.lose_tap(&error),
        }
    }

    /// Plain: copies frames into the guest's buffers.
    fn deliver(&mut self, rings: &[Ring]) -> Burst {
        let (Some(tap), Some(memory)) = (&self.tap, &self.memory) else {
            return Burst::NoRoom;
        };
        let memory = memory.memory();
        let ring = &rings[Wake::RxKick as usize];
        let broken = &mut self.broken[Wake::RxKick as usize];
        // The next kick, or the queue's being enabled, makes us look at the tap again.
        let Some(mut queue) = PlainQueue::lock(ring, &memory).filter(|_| !*broken) else {
            return Burst::NoRoom;
        };
        self.rx.deliver(tap, &mut queue).unwrap_or_else(|error| {
            mark_broken(broken, "receive", &error);
            Burst::NoRoom
        })
    }

    /// A VMM connects: it becomes ours, or hears why not.
    fn connect(&mut self, rings: &[Ring]) {
        let objection = self.objection(rings);
        let Some(listener) = &self.staging else { return };
        if let Some(reason) = objection {
            return listener.refuse(&reason);
        }
        match self.accept(listener) {
            Ok(Some(session)) => {
                tracing::info!(
                    vmm = session.end().vmm_release(),
                    "A VMM protects its guest through this device"
                );
                self.sink = Sink::Protected(Box::new(session));
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(error = &error as &dyn Error, "A connector did not become our VMM"),
        }
    }

    /// Why no VMM can be served now.
    fn objection(&mut self, rings: &[Ring]) -> Option<String> {
        let runs = |ring: &Ring| ring.get_ref().get_queue().ready();
        match self.sink {
            Sink::Protected(_) => Some("Another VMM uses this network device".to_owned()),
            Sink::Plain if rings.iter().any(runs) => Some(
                "A front-end runs this device; connect to staging before its queues are started".to_owned(),
            ),
            Sink::Plain | Sink::Over => self.reopen_tap().err().map(|error| sentence(&error)),
        }
    }

    fn accept(&self, listener: &DeviceListener) -> Result<Option<Session>, AcceptError> {
        let Some(end) = listener.accept(self.facts.kind, |_| Ok(self.facts.clone()))? else {
            return Ok(None);
        };
        let session = Session::new(end, self.mac)?;
        self.wakes
            .watch(session.end().doorbell(), Wake::StagingDoorbell)?;
        self.wakes.watch(session.end().socket(), Wake::StagingHangup)?;
        self.wakes.watch(session.timer(), Wake::Announce)?;
        Ok(Some(session))
    }

    fn hear_hangup(&mut self) {
        if self
            .sink
            .session()
            .is_some_and(|session| session.end().is_hung_up())
        {
            self.end_session("The VMM is gone");
        }
    }

    /// Drops the session and all it holds.
    fn end_session(&mut self, reason: &str) {
        if let Some(session) = self.sink.session() {
            tracing::info!(reason, "A protected session ends; held frames are dropped");
            self.wakes.unwatch(session.end().doorbell());
            self.wakes.unwatch(session.end().socket());
            self.wakes.unwatch(session.timer());
        }
        self.sink = Sink::Over;
    }

    /// Protected: does all there is to do before going back to sleep.
    fn settle(&mut self, rings: &[Ring]) {
        let Sink::Protected(session) = &mut self.sink else {
            return;
        };
        let memory = self.memory.as_ref().map(GuestAddressSpace::memory);
        let table = descriptor_table(&rings[Wake::TxKick as usize]);
        let chains = memory.as_deref().map(|memory| Chains { memory, table });
        match session.settle(&mut self.rx, self.tap.as_ref(), chains) {
            Ok(Settled::Sleeps) => {}
            Ok(Settled::Busy) => self.again.ring(),
            Err(error) => {
                let reason = sentence(&error);
                drop(memory);
                return self.end_session(&reason);
            }
        }
        let (halted, wants_frames) = (session.mode() == Mode::Halted, session.wants_frames());
        self.watch_tap(wants_frames);
        if halted {
            // Without its carrier no bridge sends the guest's frames here any more.
            self.tap = None;
        }
    }

    fn watch_tap(&mut self, watch: bool) {
        let Some(tap) = &self.tap else { return };
        if watch == self.tap_watched {
            return;
        }
        if !watch {
            self.wakes.unwatch(tap);
        } else if let Err(error) = self.wakes.watch(tap, Wake::Tap) {
            tracing::error!(%error, "Cannot wait for the tap");
            return;
        }
        self.tap_watched = watch;
    }

    /// A protected guest without a network is not protected: its VMM has to hear of it.
    fn lose_tap(&mut self, error: &io::Error) {
        tracing::error!(%error, tap = self.tap_name, "The tap broke");
        self.watch_tap(false);
        self.tap = None;
        self.end_session("The tap broke");
    }

    fn reopen_tap(&mut self) -> Result<(), OpenError> {
        if self.tap.is_none() {
            self.tap = Some(Tap::open(&self.tap_name)?);
            self.tap_watched = false;
            self.set_up_tap();
        }
        Ok(())
    }

    fn set_up_tap(&self) {
        let Some(tap) = &self.tap else { return };
        let offloads = self.acked.unwrap_or(0);
        let set = tap
            .set_header(self.header())
            .and_then(|()| tap.set_offloads(offloads));
        if let Err(error) = set {
            tracing::error!(%error, "The tap refuses a header or offloads that it offered");
        }
    }
}

fn mark_broken(broken: &mut bool, queue: &str, error: &BrokenQueue) {
    tracing::error!(
        error = error as &dyn Error,
        queue,
        "A queue is broken; it rests until the driver sets it up again"
    );
    *broken = true;
}
