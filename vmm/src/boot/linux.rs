//! The Linux boot: an unmodified vmlinux or bzImage in memory, entered by the 64-bit boot protocol.
//!
//! The machine builder calls [`prepare`] once and [`Boot::load`] before the first exit, again for a guest that restarts.
//! The kernel is unpacked on the host ([`bzimage`]), freed of `rdtsc` ([`rewrite`]), and finds its devices by ACPI ([`acpi`]). Its first randomness is the seed of the
//! `PowerOn` input, which [`SeedPlace::write`] lays down. Nothing here runs after power-on.
//!
//! [`bzimage`]: super::bzimage
//! [`rewrite`]: super::rewrite
//! [`acpi`]: super::acpi

use super::{acpi, bzimage, rewrite};
use crate::memory::GuestRam;
use crate::vcpu::VcpuCount;
use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{Elf, KernelLoader};
use std::io::Cursor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use zerocopy::IntoBytes;

/// What the board needs the kernel to know; words of the user come later and win. `lpj`: without a timer that interrupts
/// a computing guest, the kernel must not measure its delay loop.
const BOARD_WORDS: &str = "lpj=1000000 nokaslr noapic nolapic";
/// The same with several vCPUs, whose timers and interrupt controllers are KVM's own.
const BOARD_WORDS_SEVERAL: &str = "nokaslr";

const GDT: u64 = 0x500;
const BOOT_PARAMS: u64 = 0x7000;
const SEED: u64 = 0x8000;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const PD: u64 = 0xb000;
const STACK: u64 = 0x6ff0;
const CMDLINE: u64 = 0x2_0000;
/// What the kernel reads of it at most.
const CMDLINE_MAX: usize = 2048;
const LOW_END: u64 = 0x9_fc00;
const HIGH_START: u64 = 0x10_0000;
/// The kernel looks for its initial file system no higher than this.
const INITRD_END: u64 = 0x7fff_f000;
const PAGE: u64 = 0x1000;

/// Present and writable, with accessed and dirty set beforehand: no processor ever writes these tables.
const TABLE: u64 = 0x23;
const LARGE_PAGE: u64 = 0xe3;
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// `SETUP_RNG_SEED` (asm/setup_data.h): the kernel mixes it in and wipes it.
const SETUP_RNG_SEED: u32 = 9;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER: u32 = 0x5372_6448;
const PROTOCOL: u16 = 0x020f;
const LOADED_HIGH: u8 = 1;
const UNKNOWN_LOADER: u8 = 0xff;

/// Why Linux could not be placed.
#[derive(Debug, thiserror::Error)]
pub enum LinuxError {
    /// The kernel file is not one.
    #[error(transparent)]
    Unpack(#[from] bzimage::UnpackError),
    /// Its code cannot be rewritten.
    #[error(transparent)]
    Rewrite(#[from] rewrite::RewriteError),
    /// It does not fit.
    #[error("The kernel does not fit into the guest's memory; raise memory_mib")]
    Kernel(#[source] linux_loader::loader::Error),
    /// The initial file system does not fit.
    #[error("The initrd does not fit into the guest's memory beside the kernel; raise memory_mib")]
    Initrd,
    /// The command line is too long.
    #[error("The kernel's command line is longer than {CMDLINE_MAX} bytes")]
    Cmdline,
    /// A table did not fit.
    #[error("The guest's memory is too small for its boot tables")]
    Table(#[from] vm_memory::GuestMemoryError),
    /// KVM does not take the registers.
    #[error("KVM refused the guest's first register values")]
    Registers(#[source] kvm_ioctls::Error),
}

/// What is booted.
#[derive(Clone, Copy, Debug)]
pub struct Boot<'a> {
    /// What [`prepare`] made of the kernel.
    pub kernel: &'a [u8],
    /// The initial file system; empty for none.
    pub initrd: &'a [u8],
    /// The user's part of the command line.
    pub cmdline: &'a str,
    /// How many virtio devices there are.
    pub devices: usize,
    /// How many vCPUs there are.
    pub vcpus: VcpuCount,
}

/// Where the kernel finds its first randomness.
#[derive(Clone, Copy, Debug)]
pub struct SeedPlace(GuestAddress);

impl SeedPlace {
    /// Lays the seed down, at power-on.
    pub fn write(self, memory: &GuestRam, seed: [u8; 32]) {
        memory
            .write_slice(&seed, self.0)
            .expect("the place was written when the kernel was loaded");
    }
}

/// A vmlinux or bzImage as it is placed: unpacked, and with one vCPU freed of what must not be executed. Done once in a VM's life,
/// however often its guest restarts: it takes longer than the rest.
///
/// # Errors
/// When it is no kernel.
pub fn prepare(kernel: &[u8], vcpus: VcpuCount) -> Result<Vec<u8>, LinuxError> {
    let mut kernel = bzimage::unpack(kernel)?.into_owned();
    if vcpus.is_several() {
        // Nobody recomputes it: it may ask the processor what it likes.
        return Ok(kernel);
    }
    let sites = rewrite::rewrite(&mut kernel)?;
    tracing::info!(
        rdtsc = sites.rdtsc,
        vdso = sites.vdso,
        cr4 = sites.cr4,
        "Rewrote instructions of the kernel"
    );
    Ok(kernel)
}

impl Boot<'_> {
    /// Places everything and points the vCPU at the kernel's entry.
    ///
    /// # Errors
    /// When the kernel is no kernel, something does not fit, or KVM refuses the registers.
    pub fn load(&self, memory: &GuestRam, vcpu: &VcpuFd) -> Result<SeedPlace, LinuxError> {
        let loaded =
            Elf::load(memory, None, &mut Cursor::new(self.kernel), None).map_err(LinuxError::Kernel)?;
        let initrd = self.place_initrd(memory, loaded.kernel_end)?;
        let cmdline = self.place_cmdline(memory)?;
        let tables = acpi::tables(self.devices, self.vcpus);
        memory.write_slice(&tables, GuestAddress(acpi::TABLES))?;
        memory.write_obj(
            params(memory, initrd, self.initrd.len(), cmdline),
            GuestAddress(BOOT_PARAMS),
        )?;
        let seed = place_seed(memory)?;
        write_tables(memory)?;
        set_registers(vcpu, loaded.kernel_load.0).map_err(LinuxError::Registers)?;
        Ok(seed)
    }

    fn place_initrd(&self, memory: &GuestRam, kernel_end: u64) -> Result<u64, LinuxError> {
        if self.initrd.is_empty() {
            return Ok(0);
        }
        let end = memory_end(memory).min(INITRD_END);
        let start = end
            .checked_sub(self.initrd.len() as u64)
            .ok_or(LinuxError::Initrd)?
            & !(PAGE - 1);
        if start < kernel_end.max(HIGH_START) {
            return Err(LinuxError::Initrd);
        }
        memory.write_slice(self.initrd, GuestAddress(start))?;
        Ok(start)
    }

    /// Returns the length.
    fn place_cmdline(&self, memory: &GuestRam) -> Result<usize, LinuxError> {
        let words = if self.vcpus.is_several() {
            BOARD_WORDS_SEVERAL
        } else {
            BOARD_WORDS
        };
        let mut line = format!("{words} {}", self.cmdline).into_bytes();
        if line.len() >= CMDLINE_MAX {
            return Err(LinuxError::Cmdline);
        }
        line.push(0);
        memory.write_slice(&line, GuestAddress(CMDLINE))?;
        Ok(line.len() - 1)
    }
}

fn memory_end(memory: &GuestRam) -> u64 {
    memory.last_addr().0 + 1
}

fn params(memory: &GuestRam, initrd: u64, initrd_len: usize, cmdline: usize) -> boot_params {
    let small = |value: u64| u32::try_from(value).expect("guest memory ends below 4 GiB");
    let mut params = boot_params {
        acpi_rsdp_addr: acpi::TABLES,
        ..Default::default()
    };
    params.hdr.type_of_loader = UNKNOWN_LOADER;
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER;
    params.hdr.version = PROTOCOL;
    params.hdr.loadflags = LOADED_HIGH;
    params.hdr.kernel_alignment = 0x100_0000;
    params.hdr.cmd_line_ptr = small(CMDLINE);
    params.hdr.cmdline_size = small(cmdline as u64);
    params.hdr.ramdisk_image = small(initrd);
    params.hdr.ramdisk_size = small(initrd_len as u64);
    params.hdr.setup_data = SEED;
    let areas = [
        (0, LOW_END, E820_RAM),
        (LOW_END, 0xa_0000, E820_RESERVED),
        (acpi::TABLES, HIGH_START, E820_RESERVED),
        (HIGH_START, memory_end(memory), E820_RAM),
    ];
    let mut table = params.e820_table;
    for (entry, (start, end, kind)) in table.iter_mut().zip(areas) {
        *entry = boot_e820_entry {
            addr: start,
            size: end - start,
            r#type: kind,
        };
    }
    params.e820_table = table;
    params.e820_entries = 4;
    params
}

/// A `struct setup_data`: next, type, length, and 32 bytes that power-on fills in.
fn place_seed(memory: &GuestRam) -> Result<SeedPlace, vm_memory::GuestMemoryError> {
    memory.write_obj(0_u64, GuestAddress(SEED))?;
    memory.write_obj(SETUP_RNG_SEED, GuestAddress(SEED + 8))?;
    memory.write_obj(32_u32, GuestAddress(SEED + 12))?;
    Ok(SeedPlace(GuestAddress(SEED + 16)))
}

fn write_tables(memory: &GuestRam) -> Result<(), vm_memory::GuestMemoryError> {
    memory.write_obj(PDPT | TABLE, GuestAddress(PML4))?;
    for gib in 0..4_u64 {
        memory.write_obj((PD + gib * PAGE) | TABLE, GuestAddress(PDPT + gib * 8))?;
    }
    let pages: Vec<u64> = (0..4 * 512_u64).map(|page| (page << 21) | LARGE_PAGE).collect();
    memory.write_slice(pages.as_bytes(), GuestAddress(PD))?;
    let gdt: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    memory.write_slice(gdt.as_bytes(), GuestAddress(GDT))
}

fn set_registers(vcpu: &VcpuFd, entry: u64) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    let data = kvm_segment {
        limit: 0xffff_ffff,
        selector: DATA,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: CODE,
        type_: 11,
        l: 1,
        db: 0,
        ..data
    };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 31);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    sregs.cr3 = PML4;
    sregs.cr4 = 0x20; // PAE
    sregs.cr0 = 0x8000_0011; // PG, ET, PE
    sregs.efer = 0x500; // LME, LMA
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry,
        rsi: BOOT_PARAMS,
        rsp: STACK,
        rflags: 2,
        ..Default::default()
    })
}
