//! A digest of everything that the guest can see. Tests and reports compare it; it is slow and changes nothing.

use super::Machine;
use crate::memory::GuestRam;
use crate::vcpu::{Vcpu, VcpuError};
use vm_memory::GuestAddress;
use zerocopy::IntoBytes;

impl Machine {
    /// A digest of everything the guest can see: registers, then memory. Slow; for tests and reports.
    ///
    /// # Errors
    /// When KVM does not tell the registers.
    pub fn digest(&mut self) -> Result<MachineDigest, VcpuError> {
        self.vcpus.lone_mut().complete()?;
        MachineDigest::of(self.vcpus.lone(), &self.parts.memory)
    }

    /// A hash of the general registers as the last exit left them, its instruction not finished. Quick.
    ///
    /// # Errors
    /// When KVM does not tell the registers.
    pub fn register_hash(&self) -> Result<u64, VcpuError> {
        let regs = self.vcpus.lone().registers()?;
        let words = [
            regs.rax,
            regs.rbx,
            regs.rcx,
            regs.rdx,
            regs.rsi,
            regs.rdi,
            regs.rsp,
            regs.rbp,
            regs.r8,
            regs.r9,
            regs.r10,
            regs.r11,
            regs.r12,
            regs.r13,
            regs.r14,
            regs.r15,
            regs.rip,
            regs.rflags,
        ];
        Ok(xxhash_rust::xxh3::xxh3_64(words.as_bytes()))
    }

    /// A digest of the general registers as the last exit left them, its instruction not finished. For tests.
    ///
    /// # Errors
    /// When KVM does not tell the registers.
    pub fn register_digest(&self) -> Result<u64, VcpuError> {
        let registers = format!("{:?}", self.vcpus.lone().registers()?);
        Ok(xxhash_rust::xxh3::xxh3_64(registers.as_bytes()))
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
    fn of(vcpu: &Vcpu, memory: &GuestRam) -> Result<Self, VcpuError> {
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
