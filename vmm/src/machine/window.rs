//! How a window closes for a guest that takes interrupts, and where the vCPU may stop at all.
//!
//! [`Machine::step`] comes here for a PC, before and while it runs on; the micro guest never does. Everything decided
//! here depends on the chips and the guest alone, so both hosts interrupt the same instruction.

use super::Machine;
use super::paging::AddressSpace;
use crate::board::Board;
use crate::board::pc::{Call, Pc};
use crate::vcpu::{Stop, VcpuError};
use crate::virtio::mmio::MmioDevice;
use lockstep_protocol::ids::GuestTime;

/// The instruction STI: the one behind it is not interrupted.
const STI: u8 = 0xfb;

impl Machine {
    /// The logged time at which a chip next has something to say, if one has.
    #[must_use]
    pub fn next_deadline(&self) -> Option<GuestTime> {
        match &self.parts.board {
            Board::Micro(_) => None,
            Board::Pc(pc) => pc.next_deadline(),
        }
    }

    /// Interrupts the guest if it is time and it can be, then runs it to the next synchronous exit.
    pub(super) fn run_interrupted(&mut self) -> Result<Stop, VcpuError> {
        let devices = self.parts.devices.iter().map(MmioDevice::interrupts);
        if let Board::Pc(pc) = &mut self.parts.board {
            pc.drive_lines(devices);
            if pc.halted && !pc.has_interrupt() {
                // Whatever entered was no reason to wake up: it sleeps on, and that is an exit too.
                return Ok(Stop::Halt);
            }
        }
        if self.has_interrupt() {
            // An interrupt comes between two instructions, never into one.
            if let Some(stop) = self.vcpus.lone_mut().finish(&mut self.parts)? {
                return Ok(stop);
            }
            if self.vcpus.lone_mut().can_interrupt()
                && let Some(pc) = self.pc()
            {
                pc.halted = false;
                let vector = pc.acknowledge();
                self.hook_faults()?;
                self.vcpus.lone_mut().interrupt(vector)?;
            }
        }
        let waits = self.has_interrupt();
        self.vcpus.lone_mut().want_window(waits);
        let stop = match self.vcpus.lone_mut().run(&mut self.parts)? {
            Stop::Window => self.land()?,
            stop => stop,
        };
        if let Some(call) = self.parts.call.take() {
            // The call is finished first: what is done then is done behind it.
            match (self.vcpus.lone_mut().finish(&mut self.parts)?, call) {
                (None, Call::UserFault) => self.user_faulted()?,
                (None, Call::WriteCr4(from)) => self.write_cr4(from)?,
                (Some(_), _) => {}
            }
        }
        if stop == Stop::Halt && self.vcpus.lone_mut().lets_interrupts_in() {
            self.pc().expect("only a PC is interrupted").halted = true;
        }
        Ok(stop)
    }

    /// Whether the guest halted, to be woken by an interrupt.
    pub(super) fn is_halted(&self) -> bool {
        matches!(&self.parts.board, Board::Pc(pc) if pc.halted)
    }

    /// Whether nothing wakes the halted guest yet: it sleeps on, rather than to take an interrupt at once.
    pub(super) fn sleeps(&self) -> bool {
        self.is_halted() && !self.has_interrupt()
    }

    /// A window that opened behind STI may have come one instruction early: an emulated processor reports it inside the
    /// shadow in which real ones do not. One step on, all of them stand at the same instruction.
    fn land(&mut self) -> Result<Stop, VcpuError> {
        let registers = self.vcpus.lone().system_registers()?;
        let space = AddressSpace::of(&registers, &self.parts.memory);
        let before = self.vcpus.lone().shown().rip.wrapping_sub(1);
        // User space has no STI; there the byte is the end of some other instruction.
        if registers.cs.dpl != 0 || space.bytes(before) != Some([STI]) {
            return Ok(Stop::Window);
        }
        self.vcpus.lone_mut().want_window(false);
        Ok(match self.vcpus.lone_mut().step(&mut self.parts)? {
            Stop::Step => Stop::Window,
            stop => stop,
        })
    }

    fn has_interrupt(&self) -> bool {
        matches!(&self.parts.board, Board::Pc(pc) if pc.has_interrupt())
    }

    fn pc(&mut self) -> Option<&mut Pc> {
        match &mut self.parts.board {
            Board::Micro(_) => None,
            Board::Pc(pc) => Some(pc),
        }
    }
}
