//! The virtio-mmio register file, version 2. The drivers use it to negotiate, to place their queues and to kick.
//! Every access is an exit, so after set-up nothing but [`Transport::notify`] happens here. Unsafe code lives here:
//! the registers are raw addresses.

use core::fmt;

use super::queue::Queue;

const MAGIC: (usize, u32) = (0x000, 0x7472_6976);
const VERSION: (usize, u32) = (0x004, 2);
const DEVICE_ID: usize = 0x008;
const DEVICE_FEATURES: usize = 0x010;
const DEVICE_FEATURES_SELECT: usize = 0x014;
const DRIVER_FEATURES: usize = 0x020;
const DRIVER_FEATURES_SELECT: usize = 0x024;
const QUEUE_SELECT: usize = 0x030;
const QUEUE_SIZE_MAX: usize = 0x034;
const QUEUE_SIZE: usize = 0x038;
const QUEUE_READY: usize = 0x044;
const QUEUE_NOTIFY: usize = 0x050;
const STATUS: usize = 0x070;
const QUEUE_DESC: usize = 0x080;
const QUEUE_DRIVER: usize = 0x090;
const QUEUE_DEVICE: usize = 0x0a0;
const CONFIG: usize = 0x100;
/// How many bytes of registers the driver may touch.
pub const REGISTER_BYTES: usize = 0x200;

const STATUS_ACKNOWLEDGE: u32 = 1;
const STATUS_DRIVER: u32 = 2;
const STATUS_DRIVER_OK: u32 = 4;
const STATUS_FEATURES_OK: u32 = 8;

/// The one transport feature that is always demanded.
const VERSION_1: u64 = 1 << 32;

/// What kind of device is expected behind the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A network card.
    Net = 1,
    /// A disk.
    Blk = 2,
}

/// Why a device cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// No virtio-mmio device of version 2 answers at the address.
    Absent,
    /// Another kind of device answers: its device id.
    OtherKind(u32),
    /// The device does not speak virtio 1, or refused the features chosen from its own offer.
    Features,
    /// The device lacks a queue, or the queue is already in use.
    Queue(u16),
    /// What the device says about itself makes no sense.
    Config,
}

impl fmt::Display for OpenError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Absent => write!(out, "No virtio-mmio device answers"),
            OpenError::OtherKind(id) => write!(
                out,
                "The virtio device has the id {id}, another kind was expected"
            ),
            OpenError::Features => write!(out, "The virtio device refuses the features of virtio 1"),
            OpenError::Queue(index) => write!(out, "The virtio device has no queue {index} to offer"),
            OpenError::Config => write!(out, "The virtio device's configuration makes no sense"),
        }
    }
}

/// A device's registers.
#[derive(Debug)]
pub struct Registers {
    base: usize,
}

impl Registers {
    /// The registers at an address.
    ///
    /// # Safety
    /// From `base`, aligned to eight bytes, [`REGISTER_BYTES`] must be readable and writable for as long as the value
    /// lives, and nothing else may use them.
    pub unsafe fn at(base: usize) -> Self {
        Registers { base }
    }

    fn read(&self, offset: usize) -> u32 {
        assert!(offset < REGISTER_BYTES && offset.is_multiple_of(4));
        // SAFETY: the offset lies within the registers and is aligned, the rest is what `at` demands.
        unsafe { core::ptr::with_exposed_provenance::<u32>(self.base + offset).read_volatile() }
    }

    fn read_byte(&self, offset: usize) -> u8 {
        assert!(offset < REGISTER_BYTES);
        // SAFETY: the offset lies within the registers, the rest is what `at` demands.
        unsafe { core::ptr::with_exposed_provenance::<u8>(self.base + offset).read_volatile() }
    }

    fn write(&mut self, offset: usize, value: u32) {
        assert!(offset < REGISTER_BYTES && offset.is_multiple_of(4));
        // SAFETY: the offset lies within the registers and is aligned, the rest is what `at` demands.
        unsafe { core::ptr::with_exposed_provenance_mut::<u32>(self.base + offset).write_volatile(value) }
    }
}

/// A device whose features are settled.
#[derive(Debug)]
pub struct Transport {
    registers: Registers,
    features: u64,
    status: u32,
}

impl Transport {
    /// Resets the device and takes those of the features that `choose` wants, told the offer, that it does offer.
    pub fn open(mut registers: Registers, kind: Kind, choose: fn(u64) -> u64) -> Result<Self, OpenError> {
        if registers.read(MAGIC.0) != MAGIC.1 || registers.read(VERSION.0) != VERSION.1 {
            return Err(OpenError::Absent);
        }
        match registers.read(DEVICE_ID) {
            id if id == kind as u32 => (),
            0 => return Err(OpenError::Absent),
            id => return Err(OpenError::OtherKind(id)),
        }
        registers.write(STATUS, 0);
        let mut status = STATUS_ACKNOWLEDGE | STATUS_DRIVER;
        registers.write(STATUS, status);

        let mut offered = 0;
        for half in [0, 1] {
            registers.write(DEVICE_FEATURES_SELECT, half);
            offered |= u64::from(registers.read(DEVICE_FEATURES)) << (32 * half);
        }
        let features = offered & (choose(offered) | VERSION_1);
        for half in [0, 1] {
            registers.write(DRIVER_FEATURES_SELECT, half);
            registers.write(DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
        status |= STATUS_FEATURES_OK;
        registers.write(STATUS, status);
        if features & VERSION_1 == 0 || registers.read(STATUS) & STATUS_FEATURES_OK == 0 {
            return Err(OpenError::Features);
        }
        Ok(Transport {
            registers,
            features,
            status,
        })
    }

    /// Whether a feature was settled on.
    pub fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Makes a queue of at most `most` entries and shows it to the device.
    pub fn queue(&mut self, index: u16, most: u16) -> Result<Queue, OpenError> {
        let registers = &mut self.registers;
        registers.write(QUEUE_SELECT, u32::from(index));
        let offered = registers.read(QUEUE_SIZE_MAX).min(u32::from(most));
        if offered == 0 || registers.read(QUEUE_READY) != 0 {
            return Err(OpenError::Queue(index));
        }
        // A power of two, as the specification wants it.
        let queue = Queue::new(1 << offered.ilog2());
        registers.write(QUEUE_SIZE, u32::from(queue.size()));
        let places = queue.places();
        for (offset, place) in [
            (QUEUE_DESC, places.descriptors),
            (QUEUE_DRIVER, places.available),
            (QUEUE_DEVICE, places.used),
        ] {
            registers.write(offset, place as u32);
            registers.write(offset + 4, (place >> 32) as u32);
        }
        registers.write(QUEUE_READY, 1);
        Ok(queue)
    }

    /// Lets the device begin.
    pub fn ready(&mut self) {
        self.status |= STATUS_DRIVER_OK;
        self.registers.write(STATUS, self.status);
    }

    /// Tells the device that a queue has something new. An exit, and so a window.
    pub fn notify(&mut self, queue: u16) {
        self.registers.write(QUEUE_NOTIFY, u32::from(queue));
    }

    /// A byte of the device's own configuration.
    pub fn config_byte(&self, offset: usize) -> u8 {
        self.registers.read_byte(CONFIG + offset)
    }

    /// Eight bytes of the device's own configuration.
    pub fn config_long(&self, offset: usize) -> u64 {
        let low = self.registers.read(CONFIG + offset);
        let high = self.registers.read(CONFIG + offset + 4);
        u64::from(low) | u64::from(high) << 32
    }
}
