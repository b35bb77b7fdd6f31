//! What exits and inputs change, and how an access of the guest reaches it.
//!
//! The vCPU calls the [`Bus`] while it runs, `ft::inject` calls the rest in windows. Nothing here runs the guest.

use super::exit::{End, Exit, IdleLimit, Kick};
use crate::abi;
use crate::board::pc::Call;
use crate::board::{Board, PortDeed, clock};
use crate::boot::linux::SeedPlace;
use crate::memory::GuestRam;
use crate::vcpu::Bus;
use crate::virtio::mmio::{DeviceKind, MmioDeed, MmioDevice, NET_RX};
use lockstep_protocol::ids::{DeviceId, GuestTime, Position, QueueIndex};
use std::sync::Arc;
use vm_memory::GuestAddress;

/// What exits and inputs change.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) memory: Arc<GuestRam>,
    pub(crate) board: Board,
    pub(crate) devices: Vec<MmioDevice>,
    pub(crate) time: GuestTime,
    pub(crate) position: Position,
    pub(crate) cmdline: String,
    pub(crate) memory_bytes: u64,
    /// Where stock Linux finds its first randomness; the micro guest has a boot page instead.
    pub(crate) seed: Option<SeedPlace>,
    /// What the guest's randomness began with.
    pub(crate) randomness: [u8; 32],
    /// The guest asked for a new life, which did not begin yet.
    pub(super) restarts: bool,
    /// An instruction that we put into the guest's kernel called (`user_tsc.rs`).
    pub(super) call: Option<Call>,
    pub(super) exit: Exit,
    /// While several vCPUs run: the queues that were kicked, whose heads are taken when all stand still.
    pub(super) noted: Option<Vec<(DeviceId, QueueIndex)>>,
}

impl Parts {
    /// Gives them away for one epoch; what is left has no devices.
    pub(super) fn lend(&mut self) -> Self {
        let left = Self {
            memory: Arc::clone(&self.memory),
            board: Board::micro(),
            devices: Vec::new(),
            cmdline: String::new(),
            exit: Exit::default(),
            noted: None,
            ..*self
        };
        let mut lent = std::mem::replace(self, left);
        lent.noted = Some(Vec::new());
        lent
    }

    /// Takes the heads of all queues that were kicked in the epoch that is over.
    pub(super) fn take_noted(&mut self) {
        for (device, queue) in self.noted.take().unwrap_or_default() {
            self.kicked(device, queue);
        }
    }

    /// Whether the guest did what somebody outside has to see to.
    pub(super) fn wants_out(&self) -> bool {
        let Exit {
            ready, reset, end, ..
        } = &self.exit;
        let kicked = self.noted.as_ref().is_some_and(|noted| !noted.is_empty());
        kicked || self.restarts || !ready.is_empty() || !reset.is_empty() || end.is_some()
    }

    /// Moves the guest's clock; it never runs backwards.
    pub(crate) fn set_time(&mut self, time: GuestTime) {
        self.time = self.time.max(time);
        match &mut self.board {
            Board::Micro(_) => clock::write_page(&self.memory, GuestAddress(abi::CLOCK_PAGE), self.time)
                .expect("the clock page lies below the smallest memory size"),
            Board::Pc(pc) => pc.set_time(self.time, &self.memory),
        }
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
        if device.kind() == DeviceKind::Net
            && let Some(ring) = device.ring_mut(NET_RX)
        {
            ring.silence_kicks(&self.memory);
        }
        note(&mut self.exit.ready, id);
    }

    fn kicked(&mut self, id: DeviceId, queue: QueueIndex) {
        if let Some(noted) = &mut self.noted {
            return note(noted, (id, queue));
        }
        let memory = &self.memory;
        let named = self.devices.get_mut(usize::from(id.get()));
        let named = named.and_then(|device| take(device, queue, memory));
        self.exit.kicks.extend(named);
        // What other queues hold by now is about to be kicked too, and goes along: one mark and one ack for all of it.
        for device in self.devices.iter_mut().filter(|device| device.is_ready()) {
            let queues = (0..).map(QueueIndex::new).take(device.rings().len());
            let taken = queues.filter_map(|queue| take(device, queue, memory));
            self.exit.kicks.extend(taken);
        }
    }
}

/// The chains that a queue holds, if any. Receive buffers are taken when a frame comes, not when they are offered.
fn take(device: &mut MmioDevice, queue: QueueIndex, memory: &Arc<GuestRam>) -> Option<Kick> {
    let receives = device.kind() == DeviceKind::Net && queue == NET_RX;
    let heads = device.ring_mut(queue).filter(|_| !receives)?.take_kicked(memory);
    (!heads.is_empty()).then(|| Kick {
        device: device.id(),
        queue,
        heads,
    })
}

/// Adds it, once.
fn note<T: PartialEq>(list: &mut Vec<T>, new: T) {
    if !list.contains(&new) {
        list.push(new);
    }
}

impl Bus for Parts {
    fn port_write(&mut self, port: u16, data: &[u8]) {
        match self.board.port_write(port, data) {
            PortDeed::None => {}
            PortDeed::Idle(limit) => self.exit.idle = Some(IdleLimit(limit)),
            PortDeed::PowerOff => self.exit.end = Some(End::PowerOff),
            PortDeed::Call(call) => self.call = Some(call),
            PortDeed::Reset => self.restarts = true,
            PortDeed::Panic => self.exit.end = Some(End::Panic),
        }
    }

    fn port_read(&mut self, port: u16, data: &mut [u8]) -> Option<u32> {
        self.board.port_read(port, data, self.position)
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
            MmioDeed::Reset => note(&mut self.exit.reset, id),
        }
    }

    fn mmio_read(&mut self, address: u64, data: &mut [u8]) {
        match self.window_of(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    fn msr_read(&mut self, index: u32) -> Option<u64> {
        match &self.board {
            Board::Micro(_) => None,
            Board::Pc(pc) => pc.msr_read(index, self.position),
        }
    }

    fn msr_write(&mut self, index: u32, value: u64) -> bool {
        match &mut self.board {
            Board::Micro(_) => false,
            Board::Pc(pc) => pc.msr_write(index, value, &self.memory),
        }
    }
}

#[cfg(test)]
mod tests;
