//! The machine: memory, board, devices and the vCPU, built in that order here and nowhere else.
//!
//! [`Machine::step`] runs to the next synchronous exit and serves it; then a window is open, in which the owner (the
//! recorder of a primary, the replayer of a backup) may [`inject`](Machine::inject) inputs. The machine itself reads no
//! clock, socket or file after it is built: same inputs at the same positions, same machine.

use crate::board::{Board, PortDeed, clock};
use crate::vcpu::{Bus, Stop, Vcpu, VcpuError};
use crate::virtio::mmio::{MmioDeed, MmioDevice};
use crate::virtio::ring::{LookAhead, QUEUE_SIZE_MAX};
use crate::{abi, boot, kvm, memory};
use kvm_ioctls::VmFd;
use lockstep_protocol::ids::{DeviceId, GuestTime, Head, Position, QueueIndex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Everything a machine is made from; equal on both hosts.
#[derive(Debug)]
pub struct MachineSpec<'a> {
    /// MiB of guest memory.
    pub memory_mib: u64,
    /// The guest program, an ELF file.
    pub image: &'a [u8],
    /// Its command line.
    pub cmdline: String,
    /// Its devices, in the order of their windows.
    pub devices: Vec<MmioDevice>,
}

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No memory.
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
    /// No KVM.
    #[error(transparent)]
    Kvm(#[from] kvm::KvmError),
    /// No guest.
    #[error(transparent)]
    Boot(#[from] boot::flat::BootError),
}

/// What the guest did in the exit that opened the window.
#[derive(Debug, Default)]
pub struct Exit {
    /// Chains it made available by a kick, to be ordered from the device process.
    pub kick: Option<Kick>,
    /// A device whose driver became ready.
    pub ready: Option<DeviceId>,
    /// A device that its driver reset.
    pub reset: Option<DeviceId>,
    /// It idles, at most so long.
    pub idle: Option<IdleLimit>,
    /// It is over.
    pub end: Option<End>,
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

/// A kick and what it made available.
#[derive(Debug)]
pub struct Kick {
    /// Whose queue.
    pub device: DeviceId,
    /// Which queue.
    pub queue: QueueIndex,
    /// The new chains, oldest first.
    pub heads: Vec<Head>,
}

/// How long an idling guest wants to wait for an input at most; `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleLimit(pub Option<Duration>);

/// How a VM ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest switched itself off.
    PowerOff,
    /// The guest reported its own panic.
    Panic,
    /// A triple fault, or a halt with nothing that could end it.
    Fault {
        /// Where the guest was.
        rip: u64,
    },
}

/// One VM on this host.
#[derive(Debug)]
pub struct Machine {
    // Declared before the memory: the VM with its slots is gone before the mapping is.
    vcpu: Vcpu,
    _vm: VmFd,
    pub(crate) parts: Parts,
    position: Position,
    template: [u8; 16],
}

/// What exits and inputs change.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) memory: Arc<GuestMemoryMmap>,
    pub(crate) board: Board,
    pub(crate) devices: Vec<MmioDevice>,
    pub(crate) time: GuestTime,
    pub(crate) cmdline: String,
    pub(crate) memory_bytes: u64,
    exit: Exit,
}

impl Machine {
    /// Builds a machine that stands before its first instruction, at position 0, with its first window open.
    ///
    /// # Errors
    /// When the host has no memory or KVM for it, or the guest image is bad.
    pub fn build(spec: MachineSpec<'_>) -> Result<Self, BuildError> {
        let memory = Arc::new(memory::create(spec.memory_mib)?);
        let kvm = kvm::open()?;
        let vm = kvm::create_vm(&kvm, &memory)?;
        let template = kvm::CpuTemplate::of_host(&kvm)?;
        let vcpu = kvm::create_vcpu(&vm, &template)?;
        boot::flat::load(&memory, &vcpu, spec.image)?;
        let parts = Parts {
            memory,
            board: Board::default(),
            devices: spec.devices,
            time: GuestTime::ZERO,
            cmdline: spec.cmdline,
            memory_bytes: spec.memory_mib << 20,
            exit: Exit::default(),
        };
        Ok(Self {
            vcpu: Vcpu::new(vcpu),
            _vm: vm,
            parts,
            position: Position::ZERO,
            template: template.digest(),
        })
    }

    /// Closes the window and runs to the next synchronous exit, which opens a new one.
    ///
    /// # Errors
    /// When KVM cannot run the guest.
    pub fn step(&mut self) -> Result<Exit, VcpuError> {
        let stop = self.vcpu.run(&mut self.parts)?;
        self.position = self.position.next();
        let mut exit = std::mem::take(&mut self.parts.exit);
        if stop != Stop::Access {
            // The micro guest neither halts nor faults; without interrupts nothing would ever wake a halt.
            exit.end = Some(End::Fault { rip: self.vcpu.rip() });
        }
        Ok(exit)
    }

    /// How many synchronous exits there were; the open window's position.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// What the guest's clock says.
    #[must_use]
    pub fn time(&self) -> GuestTime {
        self.parts.time
    }

    /// The digest of the CPUID template.
    #[must_use]
    pub fn template(&self) -> [u8; 16] {
        self.template
    }

    /// Guest memory, to be shared with device processes.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.parts.memory
    }

    /// The device with this id, if there is one.
    #[must_use]
    pub fn device(&self, id: DeviceId) -> Option<&MmioDevice> {
        self.parts.devices.get(usize::from(id.get()))
    }

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

    /// What the guest printed since the last call.
    pub fn take_console(&mut self) -> Vec<u8> {
        self.parts.board.take_console()
    }

    /// A digest of everything the guest can see: registers, then memory, then time. Slow; for tests and reports.
    ///
    /// # Errors
    /// When KVM does not tell the registers.
    pub fn digest(&mut self) -> Result<MachineDigest, VcpuError> {
        self.vcpu.complete()?;
        MachineDigest::of(&self.vcpu, &self.parts.memory)
    }
}

impl Parts {
    fn window_of(&mut self, address: u64) -> Option<(&mut MmioDevice, u64)> {
        let index = address.checked_sub(abi::NET_MMIO)? / abi::MMIO_BYTES;
        let device = self.devices.get_mut(usize::try_from(index).ok()?)?;
        Some((device, address % abi::MMIO_BYTES))
    }

    fn driver_ready(&mut self, id: DeviceId) {
        let Some(device) = self.devices.get_mut(usize::from(id.get())) else {
            return;
        };
        if device.kind() == crate::virtio::mmio::DeviceKind::Net
            && let Some(ring) = device.ring_mut(crate::virtio::mmio::NET_RX)
        {
            ring.silence_kicks(&self.memory);
        }
        self.exit.ready = Some(id);
    }

    fn kicked(&mut self, id: DeviceId, queue: QueueIndex) {
        let Some(device) = self.devices.get_mut(usize::from(id.get())) else {
            return;
        };
        let receives =
            device.kind() == crate::virtio::mmio::DeviceKind::Net && queue == crate::virtio::mmio::NET_RX;
        // Receive buffers are taken when a frame comes, not when they are offered.
        let heads = match device.ring_mut(queue) {
            Some(ring) if !receives => ring.take_kicked(&self.memory),
            _ => Vec::new(),
        };
        self.exit.kick = Some(Kick {
            device: id,
            queue,
            heads,
        });
    }
}

impl Bus for Parts {
    fn port_write(&mut self, port: u16, data: &[u8]) {
        match self.board.port_write(port, data) {
            PortDeed::None => {}
            PortDeed::Idle(limit) => self.exit.idle = Some(IdleLimit(limit)),
            PortDeed::PowerOff => self.exit.end = Some(End::PowerOff),
            PortDeed::Panic => self.exit.end = Some(End::Panic),
        }
    }

    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        self.board.port_read(port, data);
    }

    fn mmio_write(&mut self, address: u64, data: &[u8]) {
        let Some((device, offset)) = self.window_of(address) else {
            return;
        };
        let id = device.id();
        match device.write(offset, data) {
            MmioDeed::None => {}
            MmioDeed::Kick(queue) => self.kicked(id, queue),
            MmioDeed::DriverReady => self.driver_ready(id),
            MmioDeed::Reset => self.exit.reset = Some(id),
        }
    }

    fn mmio_read(&mut self, address: u64, data: &mut [u8]) {
        match self.window_of(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }
}

/// What a machine comes to: equal digests mean equal machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineDigest {
    /// General and floating-point registers.
    pub registers: u128,
    /// Every page of memory, in order.
    pub pages: Vec<u64>,
}

impl MachineDigest {
    fn of(vcpu: &Vcpu, memory: &GuestMemoryMmap) -> Result<Self, VcpuError> {
        use std::hash::Hasher;
        use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};
        let regs = vcpu.registers()?;
        let float = vcpu.float_registers()?;
        let text = format!("{regs:?}{float:?}");
        let mut pages = Vec::new();
        let mut page = [0_u8; 4096];
        for region in memory.iter() {
            for at in (0..region.len()).step_by(page.len()) {
                let address = GuestAddress(region.start_addr().0 + at);
                memory
                    .read_slice(&mut page, address)
                    .expect("the loop stays inside the region");
                let mut hasher = xxhash_rust::xxh3::Xxh3::new();
                hasher.write(&page);
                pages.push(hasher.finish());
            }
        }
        Ok(Self {
            registers: xxhash_rust::xxh3::xxh3_128(text.as_bytes()),
            pages,
        })
    }
}

impl Parts {
    /// Moves the guest's clock; it never runs backwards.
    pub(crate) fn set_time(&mut self, time: GuestTime) {
        self.time = self.time.max(time);
        clock::write_page(&self.memory, GuestAddress(abi::CLOCK_PAGE), self.time)
            .expect("the clock page lies below the smallest memory size");
    }
}
