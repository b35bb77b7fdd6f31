//! vhost-user and staging glue: features, memory, wake-ups. No logic: what a wake-up does is done in `submit.rs` and
//! `plain.rs`.
//!
//! Called by the vhost-user daemon: set-up messages on its connection's thread, wake-ups on its worker thread. The
//! staging side's descriptors live in an epoll set of their own, which is put into each new daemon's: so a staging
//! session outlives a vhost-user connection and needs none to begin.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use lockstep_staging::{
    DeviceEnd, DeviceFacts, DeviceKind, DeviceListener, ImageDigest, StageError, VmmFacts,
};
use vhost::vhost_user::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackendMut, VringEpollHandler};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use crate::complete::Failures;
use crate::disk::Disk;
use crate::image;
use crate::limits::{PUMP_ROUNDS, QUEUE_SIZE_MAX, QUEUES};
use crate::offer::{self, Service};
use crate::plain;
use crate::sink::{AtomicMemory, Ring};
use crate::submit::Submit;

/// The daemon keeps the number after the last queue for itself.
const STAGING_WAKE: u16 = QUEUES as u16 + 1;

/// The backend as the daemon shares it between its threads.
pub type SharedBackend = Arc<Mutex<Backend>>;

/// Every way the worker thread can wake.
#[derive(Clone, Copy)]
enum Wake {
    /// A plain front-end's guest queued something.
    Kick,
    /// The staging side: a VMM comes, goes, orders or moves the gate.
    Staging,
}

/// Which descriptor of the staging side.
#[derive(Clone, Copy)]
enum StagingWake {
    Listener = 0,
    Socket = 1,
    Doorbell = 2,
}

/// One disk for one guest.
#[derive(Debug)]
pub struct Backend {
    disk: Disk,
    service: ServiceState,
    /// Missing until the front-end shares it.
    memory: Option<AtomicMemory>,
    /// The daemon forgets to close this one; see [`Backend::disconnected`].
    exit_fd: Mutex<Option<RawFd>>,
}

/// Whom this process serves; decided when it starts.
#[derive(Debug)]
enum ServiceState {
    Plain { failures: Failures, broken: bool },
    Protected(Box<Staging>),
}

/// The staging side.
#[derive(Debug)]
struct Staging {
    listener: DeviceListener,
    session: Option<Session>,
    epoll: Epoll,
}

/// One VMM. Dropping it drops every held request, never issued.
#[derive(Debug)]
struct Session {
    end: DeviceEnd,
    submit: Submit,
}

impl Backend {
    /// A backend for any vhost-user front-end.
    pub fn plain(disk: Disk) -> Self {
        let service = ServiceState::Plain {
            failures: Failures::default(),
            broken: false,
        };
        Self {
            disk,
            service,
            memory: None,
            exit_fd: Mutex::new(None),
        }
    }

    /// A backend for our VMM, which connects to this listener.
    pub fn protected(disk: Disk, listener: DeviceListener) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        watch(&epoll, listener.as_raw_fd(), StagingWake::Listener)?;
        let service = ServiceState::Protected(Box::new(Staging {
            listener,
            session: None,
            epoll,
        }));
        Ok(Self {
            disk,
            service,
            memory: None,
            exit_fd: Mutex::new(None),
        })
    }

    /// Makes a new daemon's worker thread serve the staging side too.
    pub fn attach(&self, handler: &VringEpollHandler<SharedBackend>) -> io::Result<()> {
        match &self.service {
            ServiceState::Plain { .. } => Ok(()),
            ServiceState::Protected(staging) => {
                handler.register_listener(staging.epoll.as_raw_fd(), EventSet::IN, u64::from(STAGING_WAKE))
            }
        }
    }

    /// The vhost-user connection is over and its daemon was dropped.
    pub fn disconnected(&mut self) {
        self.memory = None;
        if let ServiceState::Plain { broken, .. } = &mut self.service {
            *broken = false;
        }
        let exit_fd = self
            .exit_fd
            .lock()
            .expect("nobody panics with this lock held")
            .take();
        if let Some(fd) = exit_fd {
            // The daemon took the descriptor out of its owner and dropped its number.
            let _ = nix::unistd::close(fd);
        }
    }

    fn offer(&self) -> Service {
        match self.service {
            ServiceState::Plain { .. } => Service::Plain,
            ServiceState::Protected(_) => Service::Protected,
        }
    }

    fn on_wake(&mut self, wake: Wake, rings: &[Ring]) {
        match wake {
            Wake::Kick => self.on_kick(rings),
            Wake::Staging => self.on_staging(rings),
        }
    }

    fn on_kick(&mut self, rings: &[Ring]) {
        // A protected VM's guest kicks its VMM, never us.
        let ServiceState::Plain { failures, broken } = &mut self.service else {
            return;
        };
        let Some(memory) = &self.memory else { return };
        if *broken {
            return;
        }
        if let Err(reason) = plain::serve_rings(rings, &memory.memory(), &mut self.disk, failures) {
            tracing::warn!(%reason, "The guest or its front-end broke a ring; the disk rests until the driver sets its rings up again");
            *broken = true;
        }
    }

    fn on_staging(&mut self, rings: &[Ring]) {
        let ServiceState::Protected(staging) = &mut self.service else {
            return;
        };
        staging.look(&self.disk);
        let Some(session) = &mut staging.session else {
            return;
        };
        let memory = self.memory.as_ref().map(GuestAddressSpace::memory);
        let result = session.run(&mut self.disk, |submit, end, disk| {
            submit.pump(end, disk, memory.as_deref(), rings)
        });
        if let Err(reason) = result {
            tracing::error!(%reason, "The VMM broke the staging rules and was disconnected");
            staging.end_session();
        }
    }
}

impl Staging {
    /// Finds out who came and who went.
    fn look(&mut self, disk: &Disk) {
        let mut events = [EpollEvent::default(); 4];
        // A set that cannot be waited for without waiting has no news.
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        let mut came = false;
        for event in &events[..count] {
            match event.data() {
                data if data == StagingWake::Listener as u64 => came = true,
                data if data == StagingWake::Socket as u64 => self.check_hang_up(),
                _ => {}
            }
        }
        if came {
            self.accept(disk);
        }
    }

    fn check_hang_up(&mut self) {
        if self
            .session
            .as_ref()
            .is_some_and(|session| session.end.is_hung_up())
        {
            tracing::info!("The VMM is gone");
            self.end_session();
        }
    }

    fn end_session(&mut self) {
        if let Some(Session { submit, .. }) = self.session.take() {
            let (in_flight, held) = submit.counts();
            tracing::info!(
                in_flight,
                held,
                "The session is over; what was held is dropped and was not issued"
            );
        }
    }

    fn accept(&mut self, disk: &Disk) {
        self.check_hang_up();
        if self.session.is_some() {
            return self.listener.refuse("This disk has a VMM already");
        }
        match self.listener.accept(DeviceKind::Blk, |vmm| facts(disk, vmm)) {
            Ok(Some(end)) => {
                tracing::info!(release = end.vmm_release(), "A VMM has connected");
                self.begin_session(end);
            }
            Ok(None) => {}
            Err(reason) => tracing::warn!(%reason, "A connector did not become our VMM"),
        }
    }

    fn begin_session(&mut self, end: DeviceEnd) {
        let watched = watch(&self.epoll, end.socket().as_raw_fd(), StagingWake::Socket)
            .and_then(|()| watch(&self.epoll, end.doorbell().as_raw_fd(), StagingWake::Doorbell));
        match watched {
            Ok(()) => {
                self.session = Some(Session {
                    end,
                    submit: Submit::default(),
                })
            }
            Err(reason) => tracing::error!(%reason, "The VMM cannot be watched and was disconnected"),
        }
    }
}

impl Session {
    /// Works until there is nothing to do, and says so to the VMM.
    fn run(
        &mut self,
        disk: &mut Disk,
        mut pump: impl FnMut(&mut Submit, &mut DeviceEnd, &mut Disk) -> Result<(), StageError>,
    ) -> Result<(), StageError> {
        self.end.wake_up();
        for _ in 0..PUMP_ROUNDS {
            pump(&mut self.submit, &mut self.end, disk)?;
            if self.end.prepare_sleep(true) {
                return Ok(());
            }
        }
        // There is more, but hang-ups and set-up messages get their turn first.
        self.end.doorbell().ring();
        Ok(())
    }
}

/// What a VMM is told of the disk, or why it cannot have it.
fn facts(disk: &Disk, vmm: &VmmFacts) -> Result<DeviceFacts, String> {
    let image = match vmm.compares_images && disk.is_mirrored() {
        false => None,
        true => Some(digest(disk).map_err(|error| format!("The disk image cannot be read: {error}"))?),
    };
    Ok(DeviceFacts {
        kind: DeviceKind::Blk,
        features: offer::features(disk, Service::Protected),
        config: offer::config(disk),
        is_mirrored: disk.is_mirrored(),
        image,
        release: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

fn digest(disk: &Disk) -> io::Result<ImageDigest> {
    tracing::info!("The image is read, to be compared with the other host's");
    let begin = Instant::now();
    let digest = image::digest(disk)?;
    tracing::info!(seconds = begin.elapsed().as_secs_f64(), "The image was read");
    Ok(digest)
}

fn watch(epoll: &Epoll, fd: RawFd, wake: StagingWake) -> io::Result<()> {
    epoll.ctl(
        ControlOperation::Add,
        fd,
        EpollEvent::new(EventSet::IN, wake as u64),
    )
}

impl VhostUserBackendMut for Backend {
    type Bitmap = ();
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE_MAX
    }

    fn features(&self) -> u64 {
        offer::vhost_features(&self.disk, self.offer())
    }

    fn acked_features(&mut self, features: u64) {
        // Our VMM says what it offers; only a plain front-end says what its driver took.
        if matches!(self.service, ServiceState::Plain { .. }) {
            self.disk.set_write_through(!offer::is_flushed_by(features));
        }
    }

    fn stop_vring(&mut self, _index: u32) -> io::Result<()> {
        // The driver starts over.
        if let ServiceState::Plain { broken, .. } = &mut self.service {
            *broken = false;
        }
        Ok(())
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        offer::protocol_features()
    }

    fn set_event_idx(&mut self, _enabled: bool) {
        // The rings were told by the daemon itself.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        offer::config_part(&self.disk, offset, size)
    }

    fn update_memory(&mut self, memory: AtomicMemory) -> io::Result<()> {
        self.memory = Some(memory);
        // Orders that came before the memory wait for it.
        if let ServiceState::Protected(staging) = &self.service
            && let Some(session) = &staging.session
        {
            session.end.doorbell().ring();
        }
        Ok(())
    }

    fn exit_event(&self, _thread_index: usize) -> Option<(EventConsumer, EventNotifier)> {
        let (consumer, notifier) = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)
            .expect("an eventfd can be made unless the process is out of descriptors");
        *self.exit_fd.lock().expect("nobody panics with this lock held") = Some(consumer.as_raw_fd());
        Some((consumer, notifier))
    }

    fn handle_event(
        &mut self,
        event: u16,
        _events: EventSet,
        rings: &[Ring],
        _thread: usize,
    ) -> io::Result<()> {
        let wake = if event == STAGING_WAKE {
            Wake::Staging
        } else {
            Wake::Kick
        };
        self.on_wake(wake, rings);
        Ok(())
    }
}
