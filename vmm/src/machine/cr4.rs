//! Writes of CR4 by a stock kernel, every one of which was rewritten to an exit (`boot/rewrite.rs`): whatever the kernel
//! writes, CR4.TSD stays set, so that `rdtsc` faults in user space (`user_tsc.rs`).
//!
//! The window code calls [`Machine::write_cr4`]. The write itself is made by the guest, one instruction long: were it made
//! by `KVM_SET_SREGS`, KVM would throw away all its page tables, and a kernel without INVPCID flushes its TLB in this way.

use super::Machine;
use super::paging::AddressSpace;
use crate::board::pc::Register;
use crate::boot::rewrite::{CALL_BYTES, cr4_call, cr4_write};
use crate::vcpu::{Stop, VcpuError};
use kvm_bindings::kvm_regs;
use vm_memory::{Bytes, GuestAddress};

/// Time-stamp disable.
const CR4_TSD: u64 = 1 << 2;

impl Machine {
    /// The guest wants to write CR4 from a register; its call is finished.
    pub(super) fn write_cr4(&mut self, from: Register) -> Result<(), VcpuError> {
        let mut registers = self.vcpus.lone().shown();
        let site = registers.rip.wrapping_sub(CALL_BYTES);
        let space = AddressSpace::of(&self.vcpus.lone().system_registers()?, &self.parts.memory);
        // Whoever uses the port in another way gets nothing for it.
        let Some(place) = space
            .place(site)
            .filter(|place| self.holds(*place, &cr4_call(from)))
        else {
            return Ok(());
        };
        let wanted = *general(&mut registers, from);
        *general(&mut registers, from) = wanted | CR4_TSD;
        registers.rip = site;
        self.vcpus.lone_mut().set_registers(&registers)?;
        self.put(place, &cr4_write(from));
        self.vcpus.lone_mut().want_window(false);
        let stop = self.vcpus.lone_mut().step(&mut self.parts)?;
        self.put(place, &cr4_call(from));
        if stop == Stop::Step {
            let mut registers = self.vcpus.lone().shown();
            *general(&mut registers, from) = wanted;
            self.vcpus.lone_mut().set_registers(&registers)?;
        }
        Ok(())
    }

    fn holds(&self, place: GuestAddress, code: &[u8]) -> bool {
        let mut found = vec![0; code.len()];
        self.parts.memory.read_slice(&mut found, place).is_ok() && found == code
    }

    fn put(&self, place: GuestAddress, code: &[u8]) {
        self.parts
            .memory
            .write_slice(code, place)
            .expect("code was read from there");
    }
}

fn general(registers: &mut kvm_regs, which: Register) -> &mut u64 {
    let all = [
        &mut registers.rax,
        &mut registers.rcx,
        &mut registers.rdx,
        &mut registers.rbx,
        &mut registers.rsp,
        &mut registers.rbp,
        &mut registers.rsi,
        &mut registers.rdi,
        &mut registers.r8,
        &mut registers.r9,
        &mut registers.r10,
        &mut registers.r11,
        &mut registers.r12,
        &mut registers.r13,
        &mut registers.r14,
        &mut registers.r15,
    ];
    all.into_iter()
        .nth(usize::from(which.number()))
        .expect("a register's number is below 16")
}
