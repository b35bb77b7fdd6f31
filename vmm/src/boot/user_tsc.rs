//! Forbids `rdtsc` to user space: the kernel's first value of CR4 gets the bit TSD.
//!
//! The Linux boot calls [`forbid`] on the unpacked kernel. Every dynamic program reads the counter once when glibc loads
//! it, whatever CPUID says. With TSD that is a fault, which the machine answers before the kernel sees it
//! (`machine/user_tsc.rs`). Only the kernel can set the bit so that it lasts: it keeps its own copy of CR4, made from
//! what its start-up code wrote. That code is decoded from the kernel's entry, and one constant in it is changed.

use elf::ElfBytes;
use elf::endian::LittleEndian;
use iced_x86::{Code, Decoder, DecoderOptions, Register};

/// Time-stamp disable.
const TSD: u8 = 1 << 2;
/// Physical address extension: no 64-bit kernel writes CR4 without it.
const PAE: u32 = 1 << 5;
/// How far behind the entry the start-up code may go on.
const STARTUP_BYTES: usize = 1024;
/// Length of the constant at the end of its instruction.
const CONSTANT: usize = 4;

/// Changes the kernel file in place; false, and nothing changed, when its start-up code is not as expected.
pub fn forbid(kernel: &mut [u8]) -> bool {
    let Some(site) = site(kernel) else { return false };
    kernel[site] |= TSD;
    true
}

/// Where in the file the constant lies that start-up puts into CR4.
fn site(kernel: &[u8]) -> Option<usize> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(kernel).ok()?;
    let entry = elf.ehdr.e_entry;
    let holds = |start: u64, size: u64| (start..start.saturating_add(size)).contains(&entry);
    let segment = elf
        .segments()?
        .iter()
        .find(|segment| holds(segment.p_paddr, segment.p_filesz))?;
    let start = usize::try_from(segment.p_offset + (entry - segment.p_paddr)).ok()?;
    let code = kernel.get(start..(start + STARTUP_BYTES).min(kernel.len()))?;
    constant(code).map(|at| start + at)
}

/// The constant that is or-ed into a register just before CR4 is written for the first time.
fn constant(code: &[u8]) -> Option<usize> {
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    let mut candidate = None;
    while decoder.can_decode() {
        let instruction = decoder.decode();
        let end = decoder.position();
        match instruction.code() {
            Code::Or_rm32_imm32 if instruction.immediate32() & PAE != 0 => {
                candidate = Some(end - CONSTANT);
            }
            Code::Mov_cr_r64 if instruction.op0_register() == Register::CR4 => {
                return candidate;
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// mov ecx, 0; or ecx, 0xa0; je +6; or ecx, 0x1000; mov cr4, rcx: as Debian 6.1 has it.
    const STARTUP: [u8; 22] = [
        0xb9, 0, 0, 0, 0, 0x81, 0xc9, 0xa0, 0, 0, 0, 0x74, 6, 0x81, 0xc9, 0, 0x10, 0, 0, 0x0f, 0x22, 0xe1,
    ];

    #[test]
    fn the_constant_with_pae_is_found() {
        assert_eq!(constant(&STARTUP), Some(7));
    }

    #[test]
    fn start_up_code_that_looks_otherwise_is_left_alone() {
        let mut other = STARTUP;
        other[21] = 0xd9; // mov cr3, rcx
        assert_eq!(constant(&other), None);
        assert!(!forbid(&mut [0; 64]));
    }
}
