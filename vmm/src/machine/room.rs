//! The receive buffers that a network card could use now. The recorder asks for it before it logs a frame, so that only
//! frames that fit are logged. It looks at rings and changes nothing.

use super::Machine;
use crate::virtio::mmio::MmioDevice;
use crate::virtio::ring::{LookAhead, QUEUE_SIZE_MAX};
use lockstep_protocol::ids::DeviceId;
use std::collections::VecDeque;

impl Machine {
    /// The buffers that the network card could use now.
    #[must_use]
    pub fn receive_room(&self, id: DeviceId) -> ReceiveRoom {
        let device = self.device(id).filter(|device| device.is_ready());
        ReceiveRoom {
            ahead: device
                .and_then(|device| device.rings().first())
                .map(|ring| ring.look_ahead(&self.parts.memory)),
            seen: VecDeque::new(),
            merges: device.is_some_and(MmioDevice::merges_buffers),
        }
    }
}

/// The receive buffers of a network card, used front to back and looked at only as far as needed.
#[derive(Debug)]
pub struct ReceiveRoom {
    ahead: Option<LookAhead>,
    /// Capacities that were looked at and not yet taken.
    seen: VecDeque<usize>,
    merges: bool,
}

impl ReceiveRoom {
    /// Takes the buffers for a frame of `length` bytes; false, and nothing taken, when it does not fit.
    pub fn take(&mut self, length: usize) -> bool {
        let most = if self.merges { usize::MAX } else { 1 };
        let (mut buffers, mut room) = (0, 0);
        while room < length && buffers < most {
            if buffers == self.seen.len() {
                let Some(capacity) = self.ahead.as_mut().and_then(Iterator::next) else {
                    return false;
                };
                self.seen.push_back(capacity);
            }
            room += self.seen[buffers];
            buffers += 1;
        }
        if room >= length {
            self.seen.drain(..buffers);
        }
        room >= length
    }

    /// Whether more buffers would not help a frame that did not fit.
    #[must_use]
    pub fn is_hopeless(&self) -> bool {
        let enough = if self.merges {
            usize::from(QUEUE_SIZE_MAX)
        } else {
            1
        };
        self.seen.len() >= enough
    }
}
