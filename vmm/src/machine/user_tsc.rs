//! `rdtsc` in user space of a stock Linux guest: made to fault, and the fault is taken back here.
//!
//! Every dynamic program reads the counter once when glibc loads it, whatever CPUID says. With CR4.TSD that is a fault.
//! The bit stays set whatever the kernel writes (`cr4.rs`). Whenever the guest takes an interrupt, the window code sees to
//! it ([`Machine::hook_faults`]) that the kernel's handler of general protection faults begins with `out 0xf1, al` in place
//! of a CLAC or of padding. So the fault is an exit, and a position like any other. A fault of `rdtsc` is undone there:
//! the program goes on behind the instruction, with the counter that the kernel would read, and the guest's kernel never
//! hears of it. For other faults the replaced instruction is made up for.

use super::Machine;
use super::paging::AddressSpace;
use crate::board::Board;
use crate::memory::GuestRam;
use crate::vcpu::{UserReturn, VcpuError};
use kvm_bindings::kvm_sregs;
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
    /// How many faults were taken back.
    answered: u64,
}

impl Hook {
    /// The handler that the guest's interrupt table names.
    fn find(registers: &kvm_sregs, memory: &GuestRam) -> Option<Self> {
        let space = AddressSpace::of(registers, memory);
        let [low, high] = space.words(registers.idt.base + GENERAL_PROTECTION * GATE)?;
        let handler = low & 0xffff | (low >> 48) << 16 | (high & 0xffff_ffff) << 32;
        Some(Self {
            place: space.place(handler)?.0,
            next: handler + CALL_US.len() as u64,
            clears_alignment: false,
            answered: 0,
        })
    }

    /// Lays it, again if the kernel patched its own code there; false when the code is not as expected.
    fn lay(&mut self, memory: &GuestRam) -> bool {
        let Ok(code) = memory.read_obj::<[u8; 4]>(GuestAddress(self.place)) else {
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
        self.clears_alignment = *beginning == CLAC;
        memory
            .write_slice(&patched[..*length], GuestAddress(self.place))
            .is_ok()
    }
}

impl Machine {
    /// How many `rdtsc` of user space were answered.
    #[must_use]
    pub fn user_rdtsc(&self) -> u64 {
        self.hook.map_or(0, |hook| hook.answered)
    }

    /// Makes faults of user space call us. Called when an interrupt is being taken: the guest's table is complete.
    pub(super) fn hook_faults(&mut self) -> Result<(), VcpuError> {
        let memory = &self.parts.memory;
        match &mut self.hook {
            // A guest that makes its handler unknowable later hurts its own programs alone.
            Some(hook) => _ = hook.lay(memory),
            none => {
                let found = Hook::find(&self.vcpus.lone().system_registers()?, memory);
                let mut hook = found.ok_or(VcpuError::UnknownHandler)?;
                if !hook.lay(memory) {
                    return Err(VcpuError::UnknownHandler);
                }
                *none = Some(hook);
            }
        }
        Ok(())
    }

    /// The guest called us from its handler, and its call is finished.
    pub(super) fn user_faulted(&mut self) -> Result<(), VcpuError> {
        let Some(mut hook) = self
            .hook
            .filter(|hook| self.vcpus.lone().shown().rip == hook.next)
        else {
            return Ok(());
        };
        if let Some(back) = self.faulted_at_rdtsc()? {
            hook.answered += 1;
            self.hook = Some(hook);
            let counter = match &self.parts.board {
                Board::Micro(_) => 0,
                Board::Pc(pc) => pc.counter(self.parts.position),
            };
            return self.vcpus.lone_mut().return_to_user(&back, counter);
        }
        if hook.clears_alignment {
            let mut registers = self.vcpus.lone().shown();
            registers.rflags &= !ALIGNMENT_FLAG;
            self.vcpus.lone_mut().set_registers(&registers)
        } else {
            Ok(())
        }
    }

    /// What the processor pushed, if it faulted at an `rdtsc` of user space: where to go on.
    fn faulted_at_rdtsc(&self) -> Result<Option<UserReturn>, VcpuError> {
        let registers = self.vcpus.lone().system_registers()?;
        let space = AddressSpace::of(&registers, &self.parts.memory);
        let Some([error, rip, cs, flags, rsp, ss]) = space.words(self.vcpus.lone().shown().rsp) else {
            return Ok(None);
        };
        if error != 0 || cs & 3 != 3 || space.bytes(rip) != Some(RDTSC) {
            return Ok(None);
        }
        Ok(Some(UserReturn {
            rip: rip.wrapping_add(RDTSC.len() as u64),
            cs,
            flags: flags & !RESUME_FLAG,
            rsp,
            ss,
        }))
    }
}
