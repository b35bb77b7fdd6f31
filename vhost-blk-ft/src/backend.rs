//! vhost-user glue: features, memory, wake-ups. No logic: what a wake-up does is done in `plain.rs`, or from `staging.rs` on.
//!
//! Called by the vhost-user daemon: set-up messages on its connection's thread, wake-ups on its worker thread. The
//! staging side is one descriptor that is put into each new daemon's epoll set: so a staging session outlives a vhost-user
//! connection and needs none to begin.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use lockstep_staging::DeviceListener;
use vhost::vhost_user::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackendMut, VringEpollHandler};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use crate::complete::Failures;
use crate::disk::Disk;
use crate::limits::{QUEUE_SIZE_MAX, QUEUES};
use crate::offer::{self, Service};
use crate::plain;
use crate::sink::{AtomicMemory, Ring};
use crate::staging::Staging;

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
    Plain {
        failures: Failures,
        broken: bool,
    },
    Protected {
        staging: Box<Staging>,
        /// The front-end was found to be none of ours, and that was said.
        is_stranger: bool,
    },
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
        Ok(Self {
            disk,
            service: ServiceState::Protected {
                staging: Box::new(Staging::new(listener)?),
                is_stranger: false,
            },
            memory: None,
            exit_fd: Mutex::new(None),
        })
    }

    /// Makes a new daemon's worker thread serve the staging side too.
    pub fn attach(&self, handler: &VringEpollHandler<SharedBackend>) -> io::Result<()> {
        match &self.service {
            ServiceState::Plain { .. } => Ok(()),
            ServiceState::Protected { staging, .. } => {
                handler.register_listener(staging.as_raw_fd(), EventSet::IN, u64::from(STAGING_WAKE))
            }
        }
    }

    /// The vhost-user connection is over and its daemon was dropped.
    pub fn disconnected(&mut self) {
        self.memory = None;
        match &mut self.service {
            ServiceState::Plain { broken, .. } => *broken = false,
            ServiceState::Protected { is_stranger, .. } => *is_stranger = false,
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
            ServiceState::Protected { .. } => Service::Protected,
        }
    }

    fn on_wake(&mut self, wake: Wake, rings: &[Ring]) {
        match wake {
            Wake::Kick => self.on_kick(rings),
            Wake::Staging => self.on_staging(rings),
        }
    }

    fn on_kick(&mut self, rings: &[Ring]) {
        let (failures, broken) = match &mut self.service {
            ServiceState::Plain { failures, broken } => (failures, broken),
            ServiceState::Protected { staging, is_stranger } => {
                // A protected VM's guest kicks its VMM, never us.
                if !staging.has_vmm() && !std::mem::replace(is_stranger, true) {
                    tracing::warn!(
                        "A front-end's guest waits for its disk, and no VMM is connected to the staging socket; \
                         for a front-end other than `lockstep run` start this without --staging"
                    );
                }
                return;
            }
        };
        let Some(memory) = &self.memory else { return };
        if *broken {
            return;
        }
        if let Err(reason) = plain::serve_rings(rings, &memory.memory(), &mut self.disk, failures) {
            tracing::warn!(
                error = &reason as &dyn std::error::Error,
                "The guest or its front-end broke a ring; the disk rests until the driver sets its rings up again"
            );
            *broken = true;
        }
    }

    fn on_staging(&mut self, rings: &[Ring]) {
        let ServiceState::Protected { staging, .. } = &mut self.service else {
            return;
        };
        let memory = self.memory.as_ref().map(GuestAddressSpace::memory);
        staging.serve(&mut self.disk, memory.as_deref(), rings);
    }
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
        if let ServiceState::Protected { staging, .. } = &self.service {
            staging.wake();
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
