//! `rdtsc` in user space of a stock Linux guest: made to fault, and the fault is taken back here.
//!
//! Every dynamic program reads the counter once when glibc loads it, whatever CPUID says. With CR4.TSD that is a fault.
//! The window code calls [`Machine::forbid_user_tsc`] whenever the guest takes an interrupt: it sets the bit, which the
//! kernel may have overwritten with its own copy, and sees to it that the kernel's handler of general protection faults
//! begins with `out 0xf1, al` in place of a CLAC or of padding. So the fault is an exit, and a position like any other.
//! A fault of `rdtsc` is undone there: the program goes on behind the instruction, with the counter that the kernel
//! would read, and the guest's kernel never hears of it. For other faults the replaced instruction is made up for.

use super::Machine;
use crate::board::Board;
use crate::vcpu::{UserReturn, VcpuError};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

const GENERAL_PROTECTION: u64 = 13;
/// Bytes of a gate in the interrupt table.
const GATE: u64 = 16;
const RDTSC: [u8; 2] = [0x0f, 0x31];
/// What the processor sets in the saved flags of a fault.
const RESUME_FLAG: u64 = 1 << 16;
/// What CLAC clears.
const ALIGNMENT_FLAG: u64 = 1 << 18;

/// `out 0xf1, al`.
const CALL_US: [u8; 2] = [0xe6, 0xf1];
/// What a handler may begin with, and what takes its place: as long, and with whole instructions behind the first.
const BEGINNINGS: [([u8; 4], usize, [u8; 2]); 4] = [
    ([0xf3, 0x0f, 0x1e, 0xfa], 4, [0x66, 0x90]), // endbr64
    (CLAC, 3, [0x90, 0]),
    ([0x0f, 0x1f, 0x00, 0], 3, [0x90, 0]),
    ([0x90, 0x90, 0x90, 0], 3, [0x90, 0]),
];
const CLAC: [u8; 4] = [0x0f, 0x01, 0xca, 0];

/// The handler that calls us.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Hook {
    place: u64,
    /// Behind our instruction.
    next: u64,
    clears_alignment: bool,
}

impl Machine {
    /// Makes `rdtsc` fault in user space from now on, if the kernel's handler can be made to call us.
    pub(super) fn forbid_user_tsc(&mut self) -> Result<(), VcpuError> {
        if self.hook.is_none() {
            // An interrupt is being taken, so the table is complete.
            let gate = self.vcpu.interrupt_table()? + GENERAL_PROTECTION * GATE;
            let Some([low, high]) = self.read_words(gate)? else {
                return Ok(());
            };
            let handler = low & 0xffff | (low >> 48) << 16 | (high & 0xffff_ffff) << 32;
            let Some(place) = self.vcpu.translate(handler)? else {
                return Ok(());
            };
            self.hook = Some(Hook {
                place: place.0,
                next: handler + CALL_US.len() as u64,
                clears_alignment: false,
            });
        }
        if self.hooks() {
            self.vcpu.disable_user_tsc()
        } else {
            Ok(())
        }
    }

    /// Lays the hook, again if the kernel patched its own code there; false when the code is not as expected.
    fn hooks(&mut self) -> bool {
        let (Some(hook), memory) = (&mut self.hook, &self.parts.memory) else {
            return false;
        };
        let Ok(code) = memory.read_obj::<[u8; 4]>(GuestAddress(hook.place)) else {
            return false;
        };
        if code.starts_with(&CALL_US) {
            return true;
        }
        let known = BEGINNINGS
            .iter()
            .find(|(beginning, length, _)| code[..*length] == beginning[..*length]);
        let Some((beginning, length, padding)) = known else {
            return false;
        };
        let patched = [CALL_US[0], CALL_US[1], padding[0], padding[1]];
        hook.clears_alignment = *beginning == CLAC;
        memory
            .write_slice(&patched[..*length], GuestAddress(hook.place))
            .is_ok()
    }

    /// The guest called us from its handler.
    pub(super) fn user_faulted(&mut self) -> Result<(), VcpuError> {
        let Some(hook) = self.hook else { return Ok(()) };
        // The guest's own instruction, after which it goes on in its handler.
        if self.vcpu.finish(&mut self.parts)?.is_some() || self.vcpu.shown().rip != hook.next {
            return Ok(());
        }
        if let Some(back) = self.user_rdtsc()? {
            let counter = match &self.parts.board {
                Board::Micro(_) => 0,
                Board::Pc(pc) => pc.counter(self.parts.position),
            };
            return self.vcpu.return_to_user(&back, counter);
        }
        if hook.clears_alignment {
            self.vcpu.clear_flags(ALIGNMENT_FLAG)
        } else {
            Ok(())
        }
    }

    /// What the processor pushed, if it faulted at an `rdtsc` of user space: where to go on.
    fn user_rdtsc(&self) -> Result<Option<UserReturn>, VcpuError> {
        let frame = self.vcpu.shown().rsp;
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
