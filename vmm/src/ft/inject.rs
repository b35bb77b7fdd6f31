//! The one way into a running machine. The recorder of a primary and the replayer of a backup call this same function
//! with the same inputs at the same positions; whatever it does depends on nothing else (design: "Path of an input").

use crate::abi::{BOOT_PAGE, BootPage};
use crate::board::Board;
use crate::machine::{Machine, Parts};
use crate::memory::GuestRam;
use crate::virtio::mmio::{MmioDevice, NET_RX};
use crate::virtio::ring::Ring;
use lockstep_protocol::ids::{DeviceId, Head, QueueIndex};
use lockstep_protocol::record::Input;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

/// Why an input cannot enter. A primary checks before it records, so this is a peer's or a device process's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// The input names a device that the VM does not have.
    #[error("An input is for device {0}, which this VM does not have")]
    NoDevice(DeviceId),
    /// The input names a queue that the device does not have.
    #[error("An input is for queue {1} of device {0}, which it does not have")]
    NoQueue(DeviceId, QueueIndex),
    /// A chain is completed that is not in flight.
    #[error("Device {0} completed chain {1}, which the guest did not give it")]
    NotInFlight(DeviceId, Head),
    /// More chains are returned than are in flight.
    #[error("Device {0} returned {1} chains, more than the guest gave it")]
    TooManyReturned(DeviceId, u16),
    /// Power-on is an input of position 0 alone.
    #[error("The log powers the VM on a second time")]
    SecondPowerOn,
    /// A delta is no input of its own: it enters whole.
    #[error("A piece of a delta was taken for an input")]
    Delta,
}

impl Machine {
    /// Lets `input` enter in the open window.
    ///
    /// # Errors
    /// When the input does not fit the machine; the machine is then unchanged.
    pub fn inject(&mut self, input: &Input<&[u8]>) -> Result<(), InjectError> {
        let started = self.position() > lockstep_protocol::ids::Position::ZERO;
        let parts = &mut self.parts;
        match *input {
            Input::PowerOn { .. } if started => Err(InjectError::SecondPowerOn),
            Input::PowerOn { seed } => {
                parts.power_on(seed);
                Ok(())
            }
            // For those who compare.
            Input::Mark | Input::Digest { .. } => Ok(()),
            Input::Tick { time } => {
                parts.set_time(time);
                Ok(())
            }
            Input::Console { bytes } => {
                parts.board.console_input(bytes);
                Ok(())
            }
            Input::Frame { device, bytes } => parts.receive(device, bytes),
            Input::Completion {
                device,
                queue,
                head,
                bytes,
            } => parts.complete(device, queue, head, bytes),
            Input::Returned { device, queue, count } => parts.give_back(device, queue, count),
            Input::DeltaPages { .. } | Input::DeltaEnd { .. } | Input::Heal => Err(InjectError::Delta),
        }
    }
}

impl Parts {
    pub(crate) fn power_on(&mut self, seed: [u8; 32]) {
        self.randomness = seed;
        match (&self.board, self.seed) {
            (Board::Pc(_), Some(place)) => place.write(&self.memory, seed),
            _ => {
                self.write_boot_page(seed);
                self.set_time(self.time);
            }
        }
    }

    fn write_boot_page(&self, seed: [u8; 32]) {
        let page = BootPage::new(self.memory_bytes, seed, &self.cmdline);
        let bytes = page
            .encode()
            .expect("the command line's length was checked when the configuration was read");
        self.memory
            .write_slice(&bytes, GuestAddress(BOOT_PAGE))
            .expect("the boot page lies below the smallest memory size");
    }

    fn receive(&mut self, id: DeviceId, frame: &[u8]) -> Result<(), InjectError> {
        let device = find(&mut self.devices, id)?;
        let merges = device.merges_buffers();
        let ring = device.ring_mut(NET_RX).ok_or(InjectError::NoQueue(id, NET_RX))?;
        // A guest whose ring lies about its buffers loses the frame, on both hosts alike.
        if ring.receive(&self.memory, frame, merges) && wants_interrupt(&self.memory, ring) {
            device.raise_interrupt();
        }
        Ok(())
    }

    fn complete(
        &mut self,
        id: DeviceId,
        queue: QueueIndex,
        head: Head,
        bytes: &[u8],
    ) -> Result<(), InjectError> {
        let device = find(&mut self.devices, id)?;
        let ring = device.ring_mut(queue).ok_or(InjectError::NoQueue(id, queue))?;
        if !ring.complete(&self.memory, head, bytes) {
            return Err(InjectError::NotInFlight(id, head));
        }
        if wants_interrupt(&self.memory, ring) {
            device.raise_interrupt();
        }
        Ok(())
    }

    fn give_back(&mut self, id: DeviceId, queue: QueueIndex, count: u16) -> Result<(), InjectError> {
        let device = find(&mut self.devices, id)?;
        let ring = device.ring_mut(queue).ok_or(InjectError::NoQueue(id, queue))?;
        if !ring.complete_oldest(&self.memory, count) {
            return Err(InjectError::TooManyReturned(id, count));
        }
        if wants_interrupt(&self.memory, ring) {
            device.raise_interrupt();
        }
        Ok(())
    }
}

/// Whether the guest, as it left the ring, wants to hear of used buffers (virtio 1.2, section 2.7.7). It is asked in the
/// window, while it stands still: asked any earlier, it could change its mind unheard.
fn wants_interrupt(memory: &GuestRam, ring: &Ring) -> bool {
    let flags = memory.read_obj::<u16>(GuestAddress(ring.queue().avail_ring()));
    flags.is_ok_and(|flags| u16::from_le(flags) & AVAIL_NO_INTERRUPT == 0)
}

/// `VRING_AVAIL_F_NO_INTERRUPT`.
const AVAIL_NO_INTERRUPT: u16 = 1;

fn find(devices: &mut [MmioDevice], id: DeviceId) -> Result<&mut MmioDevice, InjectError> {
    devices
        .get_mut(usize::from(id.get()))
        .ok_or(InjectError::NoDevice(id))
}
