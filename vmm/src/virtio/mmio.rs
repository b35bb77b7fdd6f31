//! One virtio-mmio register window (virtio 1.2, section 4.2), modern only.
//!
//! The machine passes every access inside the window; what the access asks for beyond the registers comes back as a
//! [`MmioDeed`]. It changes only by the guest's own accesses, so it is the same on both hosts. It never talks to a
//! device process.

mod state;

pub use state::{MmioState, WindowMisfit};

use super::ring::{QUEUE_SIZE_MAX, Ring};
use lockstep_protocol::ids::{DeviceId, QueueIndex};
use serde::{Deserialize, Serialize};
use std::fmt;
use virtio_bindings::virtio_config as config;
use virtio_bindings::virtio_mmio as regs;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::QueueT;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION_MODERN: u32 = 2;
/// "LSFT": who made the device, for curious guests.
const VENDOR: u32 = 0x5446_534c;

/// What kind of device a window shows; the numbers are virtio's (section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// Network card: queue 0 receives, queue 1 transmits.
    Net,
    /// Disk: queue 0 carries requests.
    Blk,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Net => "network card",
            Self::Blk => "disk",
        })
    }
}

impl DeviceKind {
    const fn virtio_id(self) -> u32 {
        match self {
            Self::Net => 1,
            Self::Blk => 2,
        }
    }

    /// How many queues such a device has.
    #[must_use]
    pub const fn queues(self) -> usize {
        match self {
            Self::Net => 2,
            Self::Blk => 1,
        }
    }
}

/// The queue of a network card on which frames arrive.
pub const NET_RX: QueueIndex = QueueIndex::new(0);
/// The queue of a network card on which frames leave.
pub const NET_TX: QueueIndex = QueueIndex::new(1);

/// What a register access asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmioDeed {
    /// Nothing beyond the registers.
    None,
    /// The guest kicked this queue.
    Kick(QueueIndex),
    /// The driver is ready: the device process may be told about the queues.
    DriverReady,
    /// The driver reset the device.
    Reset,
}

/// The registers and queues of one device.
#[derive(Debug)]
pub struct MmioDevice {
    id: DeviceId,
    kind: DeviceKind,
    offered: u64,
    config_space: Vec<u8>,
    accepted: u64,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    status: u32,
    interrupt_status: u32,
    rings: Vec<Ring>,
}

impl MmioDevice {
    /// A device after power-on that offers `features` and shows `config_space`.
    #[must_use]
    pub fn new(id: DeviceId, kind: DeviceKind, features: u64, config_space: Vec<u8>) -> Self {
        Self {
            id,
            kind,
            offered: features | 1 << config::VIRTIO_F_VERSION_1,
            config_space,
            accepted: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            status: 0,
            interrupt_status: 0,
            rings: new_rings(kind),
        }
    }

    /// As after power-on.
    pub fn reset(&mut self) {
        let space = std::mem::take(&mut self.config_space);
        *self = Self::new(self.id, self.kind, self.offered, space);
    }

    /// Which device this is in records.
    #[must_use]
    pub fn id(&self) -> DeviceId {
        self.id
    }

    /// What the window shows.
    #[must_use]
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// The features both sides agreed on.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.accepted
    }

    /// Whether the driver of a network card takes a frame in several buffers.
    #[must_use]
    pub fn merges_buffers(&self) -> bool {
        self.kind == DeviceKind::Net && self.accepted >> VIRTIO_NET_F_MRG_RXBUF & 1 == 1
    }

    /// Whether the driver said that it is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.status & config::VIRTIO_CONFIG_S_DRIVER_OK != 0
    }

    /// The queues in order of their index.
    #[must_use]
    pub fn rings(&self) -> &[Ring] {
        &self.rings
    }

    /// One queue, if the device has it.
    pub fn ring_mut(&mut self, queue: QueueIndex) -> Option<&mut Ring> {
        self.rings.get_mut(usize::from(queue.get()))
    }

    /// The used ring moved: the guest will find the reason in the interrupt status.
    pub fn raise_interrupt(&mut self) {
        self.interrupt_status |= regs::VIRTIO_MMIO_INT_VRING;
    }

    /// Whether the device's interrupt line is high.
    #[must_use]
    pub fn interrupts(&self) -> bool {
        self.interrupt_status != 0
    }

    /// A load at `offset` of the window. Registers answer 32-bit loads, the config space any size.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(u64::from(regs::VIRTIO_MMIO_CONFIG)) {
            let space = usize::try_from(at)
                .ok()
                .and_then(|at| self.config_space.get(at..))
                .unwrap_or_default();
            let len = data.len().min(space.len());
            data[..len].copy_from_slice(&space[..len]);
        } else if let (Ok(register), 4) = (u32::try_from(offset), data.len()) {
            data.copy_from_slice(&self.register(register).to_le_bytes());
        }
    }

    /// A store at `offset` of the window.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> MmioDeed {
        let (Ok(register), &[a, b, c, d]) = (u32::try_from(offset), data) else {
            return MmioDeed::None;
        };
        let value = u32::from_le_bytes([a, b, c, d]);
        match register {
            regs::VIRTIO_MMIO_QUEUE_NOTIFY => return self.kick(value),
            regs::VIRTIO_MMIO_STATUS => return self.set_status(value),
            regs::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_sel = value,
            regs::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            regs::VIRTIO_MMIO_DRIVER_FEATURES => self.accept_features(value),
            regs::VIRTIO_MMIO_QUEUE_SEL => self.queue_sel = value,
            regs::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt_status &= !value,
            _ => self.set_up_queue(register, value),
        }
        MmioDeed::None
    }

    fn register(&self, register: u32) -> u32 {
        match register {
            regs::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            regs::VIRTIO_MMIO_VERSION => VERSION_MODERN,
            regs::VIRTIO_MMIO_DEVICE_ID => self.kind.virtio_id(),
            regs::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            regs::VIRTIO_MMIO_DEVICE_FEATURES => half(self.offered, self.device_features_sel),
            regs::VIRTIO_MMIO_QUEUE_NUM_MAX => self.selected().map_or(0, |_| u32::from(QUEUE_SIZE_MAX)),
            regs::VIRTIO_MMIO_QUEUE_READY => {
                self.selected().map_or(0, |ring| u32::from(ring.queue().ready()))
            }
            regs::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt_status,
            regs::VIRTIO_MMIO_STATUS => self.status,
            // All ones: there is no shared memory region.
            regs::VIRTIO_MMIO_SHM_LEN_LOW | regs::VIRTIO_MMIO_SHM_LEN_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn selected(&self) -> Option<&Ring> {
        self.rings.get(usize::try_from(self.queue_sel).ok()?)
    }

    fn accept_features(&mut self, value: u32) {
        if self.status & config::VIRTIO_CONFIG_S_FEATURES_OK != 0 || self.driver_features_sel > 1 {
            return;
        }
        let shift = 32 * self.driver_features_sel;
        self.accepted = (self.accepted & !(0xffff_ffff << shift)) | (u64::from(value) << shift);
    }

    fn kick(&mut self, value: u32) -> MmioDeed {
        match u16::try_from(value) {
            Ok(queue) if usize::from(queue) < self.rings.len() && self.is_ready() => {
                MmioDeed::Kick(QueueIndex::new(queue))
            }
            _ => MmioDeed::None,
        }
    }

    fn set_status(&mut self, value: u32) -> MmioDeed {
        if value == 0 {
            self.reset();
            return MmioDeed::Reset;
        }
        let features_ok =
            self.accepted & !self.offered == 0 && self.accepted >> config::VIRTIO_F_VERSION_1 & 1 == 1;
        let was_ready = self.is_ready();
        self.status = value;
        if !features_ok {
            // The driver reads the status back and learns that its choice is refused (section 3.1.1).
            self.status &= !(config::VIRTIO_CONFIG_S_FEATURES_OK | config::VIRTIO_CONFIG_S_DRIVER_OK);
        }
        if self.is_ready() && !was_ready {
            MmioDeed::DriverReady
        } else {
            MmioDeed::None
        }
    }

    fn set_up_queue(&mut self, register: u32, value: u32) {
        if self.is_ready() {
            return;
        }
        let index = usize::try_from(self.queue_sel).unwrap_or(usize::MAX);
        // A queue that is in use stays as it is until a reset: what is in flight belongs to it.
        let Some(queue) = self
            .rings
            .get_mut(index)
            .filter(|ring| ring.inflight_len() == 0)
            .map(Ring::queue_mut)
        else {
            return;
        };
        match register {
            regs::VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            regs::VIRTIO_MMIO_QUEUE_READY => queue.set_ready(value == 1),
            regs::VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            regs::VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            regs::VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
            regs::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
            regs::VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
            regs::VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }
}

fn new_rings(kind: DeviceKind) -> Vec<Ring> {
    (0..kind.queues()).map(|_| Ring::default()).collect()
}

fn half(word: u64, which: u32) -> u32 {
    match which {
        0 => u32::try_from(word & 0xffff_ffff).expect("masked to 32 bits"),
        1 => u32::try_from(word >> 32).expect("shifted to 32 bits"),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestRam;
    use std::sync::Arc;
    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::desc::split::Descriptor;
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::GuestAddress;

    fn device() -> MmioDevice {
        MmioDevice::new(DeviceId::new(1), DeviceKind::Blk, 0x40, vec![1, 2, 3, 4])
    }

    fn set(device: &mut MmioDevice, register: u32, value: u32) -> MmioDeed {
        device.write(u64::from(register), &value.to_le_bytes())
    }

    fn get(device: &MmioDevice, register: u32) -> u32 {
        let mut data = [0; 4];
        device.read(u64::from(register), &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_driver_that_wants_what_was_not_offered_is_refused() {
        let mut device = device();
        set(&mut device, regs::VIRTIO_MMIO_DRIVER_FEATURES, 0x80);
        set(&mut device, regs::VIRTIO_MMIO_STATUS, 0xb);
        assert_eq!(get(&device, regs::VIRTIO_MMIO_STATUS), 0x3);
    }

    #[test]
    fn a_driver_that_follows_the_rules_becomes_ready_once() {
        let mut device = device();
        set(&mut device, regs::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        set(&mut device, regs::VIRTIO_MMIO_DRIVER_FEATURES, 1);
        set(&mut device, regs::VIRTIO_MMIO_STATUS, 0xb);
        assert_eq!(
            set(&mut device, regs::VIRTIO_MMIO_STATUS, 0xf),
            MmioDeed::DriverReady
        );
        assert_eq!(set(&mut device, regs::VIRTIO_MMIO_STATUS, 0xf), MmioDeed::None);
        assert_eq!(
            set(&mut device, regs::VIRTIO_MMIO_QUEUE_NOTIFY, 0),
            MmioDeed::Kick(QueueIndex::new(0))
        );
    }

    #[test]
    fn a_queue_in_use_keeps_its_size_until_a_reset() {
        let memory = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap());
        let mock = MockSplitQueue::new(&*memory, 8);
        let buffer = RawDescriptor::from(Descriptor::new(0x8000, 16, 0, 0));
        mock.build_multiple_desc_chains(&[buffer]).unwrap();
        let mut device = device();
        *device.rings[0].queue_mut() = mock.create_queue().unwrap();
        assert_eq!(device.rings[0].take_kicked(&memory).len(), 1);

        set(&mut device, regs::VIRTIO_MMIO_QUEUE_NUM, 2);
        assert_eq!(device.rings[0].queue().size(), 8);
        set(&mut device, regs::VIRTIO_MMIO_STATUS, 0);
        set(&mut device, regs::VIRTIO_MMIO_QUEUE_NUM, 2);
        assert_eq!(device.rings[0].queue().size(), 2);
    }

    #[test]
    fn a_kick_of_a_queue_that_is_not_there_does_nothing() {
        assert_eq!(
            set(&mut device(), regs::VIRTIO_MMIO_QUEUE_NOTIFY, 7),
            MmioDeed::None
        );
    }

    #[test]
    fn the_config_space_ends_in_zeros() {
        let mut data = [9; 8];
        device().read(u64::from(regs::VIRTIO_MMIO_CONFIG) + 2, &mut data);
        assert_eq!(data, [3, 4, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_reset_forgets_everything_but_the_device() {
        let mut device = device();
        set(&mut device, regs::VIRTIO_MMIO_STATUS, 3);
        assert_eq!(set(&mut device, regs::VIRTIO_MMIO_STATUS, 0), MmioDeed::Reset);
        assert_eq!(get(&device, regs::VIRTIO_MMIO_STATUS), 0);
        assert_eq!(
            get(&device, regs::VIRTIO_MMIO_CONFIG),
            u32::from_le_bytes([1, 2, 3, 4])
        );
    }
}
