//! The vhost-user side: what a front-end is offered, and the way from its requests and kicks to `device.rs`.
//!
//! Driven by the vhost-user-backend daemon. No logic: each method hands a fact to the device or says a constant.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::VhostUserBackend;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use crate::device::Device;
use crate::frame::Mac;
use crate::limits::{QUEUE_SIZE_MAX, QUEUES};
use crate::queue::{AtomicMemory, Ring};
use crate::wakes::Wake;

/// The virtio features of a device on a tap with these offloads.
pub fn device_features(tap: u64, mac: Option<Mac>) -> u64 {
    let own = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_NET_F_MRG_RXBUF;
    own | tap | mac.map_or(0, |_| 1 << VIRTIO_NET_F_MAC)
}

/// The configuration space: the address, zeros where none was given.
pub fn device_config(mac: Option<Mac>) -> Vec<u8> {
    // struct virtio_net_config: mac, status, max_virtqueue_pairs, mtu; none of the latter three is offered.
    let mut config = vec![0; 12];
    config[..6].copy_from_slice(&mac.map_or([0; 6], Mac::octets));
    config
}

/// What the daemon drives.
#[derive(Debug)]
pub struct NetBackend {
    device: Mutex<Device>,
    /// The daemon forgets to close this one; see [`NetBackend::close_exit_event`].
    exit_fd: Mutex<Option<RawFd>>,
}

impl NetBackend {
    /// Hands `device` to front-ends.
    pub fn new(device: Device) -> Self {
        Self {
            device: Mutex::new(device),
            exit_fd: Mutex::new(None),
        }
    }

    /// A daemon was dropped, and its worker with it.
    pub fn close_exit_event(&self) {
        if let Some(fd) = self.exit_fd().take() {
            // The daemon took the descriptor out of its owner and dropped its number.
            let _ = nix::unistd::close(fd);
        }
    }

    fn exit_fd(&self) -> MutexGuard<'_, Option<RawFd>> {
        self.exit_fd.lock().expect("nobody panics with this lock held")
    }

    /// The device, locked.
    pub fn device(&self) -> MutexGuard<'_, Device> {
        self.device
            .lock()
            .expect("a panic anywhere ends the whole process")
    }
}

impl VhostUserBackend for NetBackend {
    type Bitmap = ();
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE_MAX
    }

    fn features(&self) -> u64 {
        self.device().facts().features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&self, features: u64) {
        self.device().set_acked_features(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        // Without MQ: front-ends (QEMU) take the number of queues that comes with it for a number of pairs.
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn reset_device(&self) {
        self.device().reset();
    }

    fn set_event_idx(&self, _enabled: bool) {
        // Not offered.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let device = self.device();
        let config = &device.facts().config;
        let start = (offset as usize).min(config.len());
        let mut bytes = config[start..].to_vec();
        // What lies beyond our configuration reads as zeros; the protocol layer has bounded the size.
        bytes.resize(size as usize, 0);
        bytes
    }

    fn update_memory(&self, memory: AtomicMemory) -> io::Result<()> {
        self.device().set_memory(memory);
        Ok(())
    }

    fn handle_event(&self, event: u16, _set: EventSet, rings: &[Ring], _thread: usize) -> io::Result<()> {
        if let Some(wake) = Wake::from_number(event.into()) {
            self.device().on_wake(wake, rings);
        }
        // An error would end the worker thread.
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        // Without it the worker would never end, and whoever drops the daemon would wait for it.
        let (consumer, notifier) = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)
            .expect("an eventfd can be made unless the process is out of descriptors");
        *self.exit_fd() = Some(consumer.as_raw_fd());
        Some((consumer, notifier))
    }

    fn stop_vring(&self, index: u32) -> io::Result<()> {
        self.device().stop_queue(index as usize);
        Ok(())
    }
}
