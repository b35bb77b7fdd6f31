//! The vhost-user front-end: tells a device process where guest memory and the queues are.
//!
//! The device port calls it when a driver becomes ready or resets its device. In a protected VM the device process only
//! reads chains through it; indices, used rings and interrupts stay with the VMM, so the kick and call events handed
//! over here are never rung.

use super::ring::Ring;
use crate::memory::GuestRam;
use std::path::{Path, PathBuf};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Why a device process could not be told.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    /// Nobody listens.
    #[error("No vhost-user device process answers at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the connection code said.
        #[source]
        source: vhost::Error,
    },
    /// It answered an error or nothing.
    #[error("The device process failed to {what}")]
    Request {
        /// What it was told.
        what: &'static str,
        /// What came back.
        #[source]
        source: vhost::Error,
    },
    /// The host gave no event.
    #[error("Cannot make an event for a queue; raise the limit on open files")]
    Event(#[source] std::io::Error),
    /// The guest placed a queue outside its memory.
    #[error("The guest placed queue {0} outside its memory")]
    GuestQueue(usize),
}

/// One vhost-user connection.
pub struct FrontEnd {
    frontend: Frontend,
    has_protocol_features: bool,
    /// Whether the device process has the queues now.
    active: bool,
}

impl std::fmt::Debug for FrontEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FrontEnd")
    }
}

impl FrontEnd {
    /// Connects to the device process at `path` and agrees on protocol features.
    ///
    /// # Errors
    /// When nobody answers there, or answers what makes no sense.
    pub fn connect(path: &Path, queues: usize) -> Result<Self, FrontendError> {
        let queues = u64::try_from(queues).expect("a device has few queues");
        let mut frontend = Frontend::connect(path, queues).map_err(|source| FrontendError::Connect {
            path: path.into(),
            source,
        })?;
        let request = |what| move |source| FrontendError::Request { what, source };
        frontend.set_owner().map_err(request("take an owner"))?;
        let offered = frontend.get_features().map_err(request("name its features"))?;
        let has_protocol_features = offered & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0;
        if has_protocol_features {
            let protocol = frontend
                .get_protocol_features()
                .map_err(|source| FrontendError::Request {
                    what: "name its protocol features",
                    source,
                })?;
            let wanted = protocol & VhostUserProtocolFeatures::REPLY_ACK;
            frontend
                .set_protocol_features(wanted)
                .map_err(|source| FrontendError::Request {
                    what: "take protocol features",
                    source,
                })?;
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        Ok(Self {
            frontend,
            has_protocol_features,
            active: false,
        })
    }

    /// Hands over memory, features and queues of a device whose driver is ready.
    ///
    /// # Errors
    /// When the device process refuses, or the guest's queue lies outside its memory.
    pub fn activate(
        &mut self,
        memory: &GuestRam,
        features: u64,
        rings: &[Ring],
    ) -> Result<(), FrontendError> {
        let request = |what| move |source| FrontendError::Request { what, source };
        let protocol =
            u64::from(self.has_protocol_features) * VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        self.frontend
            .set_features(features | protocol)
            .map_err(request("take the guest's features"))?;
        let regions = memory
            .iter()
            .map(VhostUserMemoryRegionInfo::from_guest_region)
            .collect::<Result<Vec<_>, _>>()
            .map_err(request("share guest memory"))?;
        self.frontend
            .set_mem_table(&regions)
            .map_err(request("map guest memory"))?;
        for (index, ring) in rings.iter().enumerate().filter(|(_, ring)| ring.queue().ready()) {
            self.set_ring(memory, index, ring)?;
        }
        self.active = true;
        Ok(())
    }

    /// Takes the queues back after the guest reset the device.
    ///
    /// # Errors
    /// When the device process refuses.
    pub fn deactivate(&mut self, rings: usize) -> Result<(), FrontendError> {
        // Every driver resets its device before it uses it; then there is nothing to take back.
        if !std::mem::take(&mut self.active) || !self.has_protocol_features {
            return Ok(());
        }
        for index in 0..rings {
            self.frontend
                .set_vring_enable(index, false)
                .map_err(|source| FrontendError::Request {
                    what: "stop a queue",
                    source,
                })?;
        }
        Ok(())
    }

    fn set_ring(&mut self, memory: &GuestRam, index: usize, ring: &Ring) -> Result<(), FrontendError> {
        let request = |what| move |source| FrontendError::Request { what, source };
        let queue = ring.queue();
        let host = |address| {
            memory
                .get_host_address(GuestAddress(address))
                .map(|pointer| pointer as u64)
                .map_err(|_| FrontendError::GuestQueue(index))
        };
        let addresses = VringConfigData {
            queue_max_size: queue.max_size(),
            queue_size: queue.size(),
            flags: 0,
            desc_table_addr: host(queue.desc_table())?,
            used_ring_addr: host(queue.used_ring())?,
            avail_ring_addr: host(queue.avail_ring())?,
            log_addr: None,
        };
        let event = || EventFd::new(EFD_NONBLOCK).map_err(FrontendError::Event);
        self.frontend
            .set_vring_num(index, queue.size())
            .map_err(request("take a queue's size"))?;
        self.frontend
            .set_vring_addr(index, &addresses)
            .map_err(request("take a queue's addresses"))?;
        self.frontend
            .set_vring_base(index, queue.next_avail())
            .map_err(request("take a queue's index"))?;
        self.frontend
            .set_vring_call(index, &event()?)
            .map_err(request("take a queue's call event"))?;
        self.frontend
            .set_vring_kick(index, &event()?)
            .map_err(request("take a queue's kick event"))?;
        if self.has_protocol_features {
            self.frontend
                .set_vring_enable(index, true)
                .map_err(|source| FrontendError::Request {
                    what: "start a queue",
                    source,
                })?;
        }
        Ok(())
    }
}
