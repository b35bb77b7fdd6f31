//! The flat boot: a static ELF placed in memory and entered in 64-bit ring 3, everything mapped one to one.
//!
//! The machine builder calls [`load`] before the first exit; the boot page itself is written by the `PowerOn` input. Ring 3 because a software KVM runs it at native speed,
//! and port access through a TSS bitmap of zeros because such a KVM does not honour IOPL; the flags' IOPL of 3 is for one
//! that does not honour the bitmap. There is no interrupt table:
//! an exception is a triple fault, which ends the VM with a report. Nothing here runs after power-on.

use crate::abi;
use crate::memory::GuestRam;
use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use linux_loader::loader::{Elf, KernelLoader};
use std::io::Cursor;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

const GDT: u64 = 0x3000;
const TSS: u64 = 0x4000;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const PD: u64 = 0xb000;
/// Present, writable, user. Accessed and dirty are set beforehand, so that no processor ever writes these pages:
/// when it would do so is its own business and differs from host to host.
const TABLE: u64 = 0x27;
const LARGE_PAGE: u64 = 0xe7;

const IO_BITMAP: u16 = 0x68;
const TSS_LIMIT: u32 = IO_BITMAP as u32 + 0x2000;

/// Privilege level 3 may use ports: a QEMU without a KVM of its own finds no bitmap in a TSS that is busy, as this one
/// must be.
const USER_FLAGS: u64 = 0x3002;

const USER_DATA: u16 = 0x2b;
const USER_CODE: u16 = 0x33;
const TASK: u16 = 0x40;

/// Why the guest image could not be placed.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The ELF file is not one.
    #[error("The guest image is not a 64-bit ELF program that fits into memory")]
    Image(#[source] linux_loader::loader::Error),
    /// A table did not fit.
    #[error("The guest's memory is too small for its boot tables")]
    Table(#[source] vm_memory::GuestMemoryError),
    /// KVM does not take the registers.
    #[error("KVM refused the guest's first register values")]
    Registers(#[source] kvm_ioctls::Error),
}

/// Places image and tables, and points the vCPU at the entry.
///
/// # Errors
/// When the image is bad or too large, or KVM refuses the registers.
pub fn load(memory: &GuestRam, vcpu: &VcpuFd, image: &[u8]) -> Result<(), BootError> {
    let loaded = Elf::load(memory, None, &mut Cursor::new(image), None).map_err(BootError::Image)?;
    write_tables(memory).map_err(BootError::Table)?;
    set_registers(vcpu, loaded.kernel_load.0).map_err(BootError::Registers)
}

fn write_tables(memory: &GuestRam) -> Result<(), vm_memory::GuestMemoryError> {
    memory.write_obj(PDPT | TABLE, GuestAddress(PML4))?;
    for gib in 0..4_u64 {
        memory.write_obj((PD + gib * 0x1000) | TABLE, GuestAddress(PDPT + gib * 8))?;
    }
    let pages: Vec<u64> = (0..4 * 512_u64).map(|page| (page << 21) | LARGE_PAGE).collect();
    memory.write_slice(pages.as_bytes(), GuestAddress(PD))?;

    // The processor reads these only when a selector is loaded, which the guest never does; they are right all the same.
    let mut gdt = [0_u64; 10];
    gdt[5] = 0x00cf_f300_0000_ffff;
    gdt[6] = 0x00af_fb00_0000_ffff;
    gdt[8] = u64::from(TSS_LIMIT) | (TSS << 16) | (0x8b << 40);
    memory.write_slice(gdt.as_bytes(), GuestAddress(GDT))?;

    memory.write_obj(IO_BITMAP, GuestAddress(TSS + 0x66))?;
    memory.write_obj(0xff_u8, GuestAddress(TSS + u64::from(TSS_LIMIT)))
}

fn set_registers(vcpu: &VcpuFd, entry: u64) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    let data = kvm_segment {
        limit: 0xffff_ffff,
        selector: USER_DATA,
        type_: 3,
        present: 1,
        dpl: 3,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: USER_CODE,
        type_: 11,
        l: 1,
        db: 0,
        ..data
    };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        base: TSS,
        limit: TSS_LIMIT,
        selector: TASK,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 79);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    sregs.cr3 = PML4;
    sregs.cr4 = 0x620; // PAE, OSFXSR, OSXMMEXCPT
    sregs.cr0 = 0x8001_0033; // PG, WP, NE, ET, MP, PE
    sregs.efer = 0x500; // LME, LMA
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry,
        rdi: abi::BOOT_PAGE,
        rflags: USER_FLAGS,
        ..Default::default()
    })
}
