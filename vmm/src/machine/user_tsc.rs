//! `rdtsc` in user space of a stock Linux guest: made to fault, and the fault is taken back here.
//!
//! Every dynamic program reads the counter once when glibc loads it, whatever CPUID says. With CR4.TSD that is a fault.
//! The window code calls [`Machine::forbid_user_tsc`] whenever the guest takes an interrupt: it sets the bit, which the
//! kernel may have overwritten with its own copy, and once a hardware breakpoint at the kernel's handler of general
//! protection faults. A fault of `rdtsc` is undone at the breakpoint: the program goes on behind the instruction, with
//! the counter that the kernel would read, and the guest's kernel never hears of it. Other faults go on to their handler.
//! Each breakpoint is an exit, so it is a position like any other.

use super::Machine;
use crate::board::Board;
use crate::vcpu::{Stop, UserReturn, VcpuError};
use vm_memory::{Bytes, GuestAddress};

const GENERAL_PROTECTION: u64 = 13;
/// Bytes of a gate in the interrupt table.
const GATE: u64 = 16;
const RDTSC: [u8; 2] = [0x0f, 0x31];
/// What the processor sets in the saved flags of a fault.
const RESUME_FLAG: u64 = 1 << 16;

impl Machine {
    /// Makes `rdtsc` fault in user space from now on.
    pub(super) fn forbid_user_tsc(&mut self) -> Result<(), VcpuError> {
        if !self.vcpu.is_watching() {
            // An interrupt is being taken, so the table is complete.
            let gate = self.vcpu.interrupt_table()? + GENERAL_PROTECTION * GATE;
            let Some([low, high]) = self.read_words(gate)? else {
                return Ok(());
            };
            self.vcpu
                .watch(low & 0xffff | (low >> 48) << 16 | (high & 0xffff_ffff) << 32)?;
        }
        self.vcpu.disable_user_tsc()
    }

    /// The guest stands at the first instruction of its handler.
    pub(super) fn faulted(&mut self) -> Result<Stop, VcpuError> {
        if let Some(back) = self.user_rdtsc()? {
            let counter = match &self.parts.board {
                Board::Micro(_) => 0,
                Board::Pc(pc) => pc.counter(self.parts.position),
            };
            self.vcpu.return_to_user(&back, counter)?;
            return Ok(Stop::Window);
        }
        Ok(match self.vcpu.step(&mut self.parts)? {
            Stop::Step => Stop::Window,
            stop => stop,
        })
    }

    /// What the processor pushed, if it faulted at an `rdtsc` of user space: where to go on.
    fn user_rdtsc(&self) -> Result<Option<UserReturn>, VcpuError> {
        let frame = self.vcpu.stack();
        let Some([error, rip, cs, flags, rsp, ss]) = self.read_words(frame)? else {
            return Ok(None);
        };
        if error != 0 || cs & 3 != 3 {
            return Ok(None);
        }
        let code = [self.read_byte(rip)?, self.read_byte(rip.wrapping_add(1))?];
        let back = UserReturn {
            rip: rip.wrapping_add(2),
            cs,
            flags: flags & !RESUME_FLAG,
            rsp,
            ss,
        };
        Ok((code == RDTSC.map(Some)).then_some(back))
    }

    fn read_words<const N: usize>(&self, at: u64) -> Result<Option<[u64; N]>, VcpuError> {
        let mut words = [0; N];
        for (word, at) in words.iter_mut().zip((at..).step_by(8)) {
            let Some(place) = self.vcpu.translate(at)? else {
                return Ok(None);
            };
            let Ok(value) = self.parts.memory.read_obj(place) else {
                return Ok(None);
            };
            *word = value;
        }
        Ok(Some(words))
    }

    fn read_byte(&self, at: u64) -> Result<Option<u8>, VcpuError> {
        let place: Option<GuestAddress> = self.vcpu.translate(at)?;
        Ok(place.and_then(|place| self.parts.memory.read_obj(place).ok()))
    }
}
