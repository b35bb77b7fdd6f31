//! The load-time rewrite: the kernel's own `rdtsc` is hidden from the CPU but still executed, and KVM cannot trap it
//! everywhere. And what the kernel writes to CR4 must not let user space execute it either.
//!
//! The Linux boot calls [`rewrite`] on the unpacked kernel file before it is loaded. Every decoded `0f 31` becomes
//! `in eax, 0xf0`, which is as long and exits; the board answers. Instructions are found by decoding executable
//! sections from their start and from every symbol, never by searching bytes. The replacement code of
//! `.altinstructions` lies in an executable section of its own, so what the kernel patches into itself is rewritten too;
//! offsets in all tables stay right because no length changes. The vDSO, a small ELF file in the kernel's data, is code
//! of user space, where the port would fault; it reads the counter only to multiply it away, so there the instruction
//! becomes `xor edx, edx`, which leaves a small number that is the same on both hosts.
//!
//! A write of CR4 becomes an `out` to a port that stands for its register: the machine then has it made with CR4.TSD set
//! besides (`machine/cr4.rs`).

use crate::board::pc::{Register as GeneralRegister, WRITE_CR4};
use elf::ElfBytes;
use elf::abi::{EM_X86_64, SHF_EXECINSTR, SHT_NOBITS, STT_FUNC};
use elf::endian::LittleEndian;
use elf::section::SectionHeader;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction};
use std::ops::Range;

/// `in eax, 0xf0`.
const PORT_READ: [u8; 2] = [0xe5, 0xf0];
/// `xor edx, edx`.
const CLEAR_EDX: [u8; 2] = [0x31, 0xd2];
/// How a 64-bit little-endian ELF file begins.
const LIBRARY_MAGIC: &[u8] = b"\x7fELF\x02\x01\x01";
/// The vDSO lies on pages of its own.
const ALIGNMENT: usize = 4096;

/// Why a kernel file cannot be rewritten.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// It is not ELF, or its tables lie outside it.
    #[error("The kernel is not a whole ELF file")]
    Elf(#[from] elf::ParseError),
    /// Another machine's.
    #[error("The kernel is not for x86-64")]
    Machine,
    /// Stripped of what the decoder needs to start from.
    #[error("The kernel has no section headers, so its code cannot be told from its data")]
    NoSections,
}

/// How many instructions were rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// `rdtsc` in the kernel's own code.
    pub rdtsc: usize,
    /// `rdtsc` in the vDSO.
    pub vdso: usize,
    /// Writes of CR4.
    pub cr4: usize,
}

/// An instruction to be rewritten, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Site {
    Rdtsc,
    /// From this register.
    WriteCr4(GeneralRegister),
}

/// Rewrites the kernel file in place and says how much.
///
/// # Errors
/// When the file is not an x86-64 ELF file with sections.
pub fn rewrite(kernel: &mut [u8]) -> Result<Rewritten, RewriteError> {
    let own = sites(kernel)?;
    let vdso = vdso_sites(kernel);
    let mut done = Rewritten {
        rdtsc: 0,
        vdso: vdso.len(),
        cr4: 0,
    };
    for (at, site) in own {
        match site {
            Site::Rdtsc => {
                done.rdtsc += 1;
                kernel[at..at + PORT_READ.len()].copy_from_slice(&PORT_READ);
            }
            Site::WriteCr4(from) => {
                done.cr4 += 1;
                let call = cr4_call(from);
                kernel[at..at + call.len()].copy_from_slice(&call);
            }
        }
    }
    for at in vdso {
        kernel[at..at + CLEAR_EDX.len()].copy_from_slice(&CLEAR_EDX);
    }
    Ok(done)
}

/// How long the instruction is that calls us instead of writing CR4; a `nop` fills up the rest.
pub const CALL_BYTES: u64 = 2;

/// What stands for a write of CR4 from this register: `out PORT, al` and a `nop`, as long as the write.
#[must_use]
pub fn cr4_call(from: GeneralRegister) -> Vec<u8> {
    let port = u8::try_from(WRITE_CR4).expect("the port is one byte") + from.number();
    match from.number() {
        ..8 => vec![0xe6, port, 0x90],
        8.. => vec![0xe6, port, 0x66, 0x90],
    }
}

/// `mov cr4, REGISTER`.
#[must_use]
pub fn cr4_write(from: GeneralRegister) -> Vec<u8> {
    match from.number() {
        number @ ..8 => vec![0x0f, 0x22, 0xe0 | number],
        number => vec![0x41, 0x0f, 0x22, 0xe0 | (number - 8)],
    }
}

/// Where every 64-bit ELF library inside the kernel file has an `rdtsc`.
fn vdso_sites(kernel: &[u8]) -> Vec<usize> {
    let starts = (ALIGNMENT..kernel.len()).step_by(ALIGNMENT);
    let libraries = starts.filter(|&start| kernel[start..].starts_with(LIBRARY_MAGIC));
    let found = libraries.filter_map(|start| Some((start, sites(&kernel[start..]).ok()?)));
    found
        .flat_map(|(start, sites)| {
            let counters = sites.into_iter().filter(|(_, site)| *site == Site::Rdtsc);
            counters.map(move |(at, _)| start + at)
        })
        .collect()
}

/// What lies where in the file.
fn sites(file: &[u8]) -> Result<Vec<(usize, Site)>, RewriteError> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(file)?;
    if elf.ehdr.e_machine != EM_X86_64 {
        return Err(RewriteError::Machine);
    }
    let sections = elf.section_headers().ok_or(RewriteError::NoSections)?;
    let functions = functions(&elf)?;
    let mut sites = Vec::new();
    for section in sections.iter().filter(is_code) {
        let (bytes, _) = elf.section_data(&section)?;
        let offset = usize::try_from(section.sh_offset).map_err(|_| RewriteError::NoSections)?;
        for piece in pieces(&section, &functions) {
            let found = decode(&bytes[piece.clone()], section.sh_addr + piece.start as u64);
            sites.extend(found.map(|(at, site)| (offset + piece.start + at, site)));
        }
    }
    Ok(sites)
}

fn is_code(section: &SectionHeader) -> bool {
    section.sh_flags & u64::from(SHF_EXECINSTR) != 0 && section.sh_type != SHT_NOBITS
}

/// Where functions begin, sorted; none in a stripped kernel.
fn functions(elf: &ElfBytes<'_, LittleEndian>) -> Result<Vec<u64>, RewriteError> {
    let Some((symbols, _)) = elf.symbol_table()? else {
        return Ok(Vec::new());
    };
    let mut starts: Vec<_> = symbols
        .iter()
        .filter(|s| s.st_symtype() == STT_FUNC)
        .map(|s| s.st_value)
        .collect();
    starts.sort_unstable();
    starts.dedup();
    Ok(starts)
}

/// The section, cut where a function begins: there the decoder is certainly in step.
fn pieces(section: &SectionHeader, functions: &[u64]) -> Vec<Range<usize>> {
    let end = usize::try_from(section.sh_size).unwrap_or(usize::MAX);
    let inside = |address: &u64| {
        address
            .checked_sub(section.sh_addr)
            .and_then(|at| usize::try_from(at).ok())
    };
    let cuts = functions
        .iter()
        .filter_map(inside)
        .filter(|at| (1..end).contains(at));
    let starts: Vec<_> = std::iter::once(0).chain(cuts).chain([end]).collect();
    starts.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

fn decode(code: &[u8], address: u64) -> impl Iterator<Item = (usize, Site)> {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    std::iter::from_fn(move || {
        while decoder.can_decode() {
            let at = decoder.position();
            decoder.decode_out(&mut instruction);
            if instruction.is_invalid() {
                // Padding or data between functions: the next byte may begin an instruction again.
                decoder
                    .set_position(at + 1)
                    .expect("the position lies inside the code");
                decoder.set_ip(address + at as u64 + 1);
            } else if let Some(site) = site(&instruction, &code[at..at + instruction.len()]) {
                return Some((at, site));
            }
        }
        None
    })
}

fn site(instruction: &Instruction, bytes: &[u8]) -> Option<Site> {
    match instruction.code() {
        Code::Rdtsc if bytes.len() == PORT_READ.len() => Some(Site::Rdtsc),
        Code::Mov_cr_r64 => (0..16)
            .map(GeneralRegister::new)
            .find(|from| bytes == cr4_write(*from))
            .map(Site::WriteCr4),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(code: &[u8]) -> Vec<(usize, Site)> {
        decode(code, 0x1000).collect()
    }

    #[test]
    fn an_rdtsc_is_found_and_its_bytes_inside_another_instruction_are_not() {
        // lfence; rdtsc; mov eax, 0x0000310f; nop; rdtsc
        let code = [
            0x0f, 0xae, 0xe8, 0x0f, 0x31, 0xb8, 0x0f, 0x31, 0x00, 0x00, 0x90, 0x0f, 0x31,
        ];
        assert_eq!(found(&code), [(3, Site::Rdtsc), (11, Site::Rdtsc)]);
    }

    #[test]
    fn a_decoder_that_meets_data_finds_its_way_back() {
        let code = [0x06, 0x90, 0x90, 0x0f, 0x31, 0xc3];
        assert_eq!(found(&code), [(3, Site::Rdtsc)]);
    }

    #[test]
    fn rdtscp_is_not_rdtsc() {
        assert!(found(&[0x0f, 0x01, 0xf9, 0xc3]).is_empty());
    }

    #[test]
    fn a_write_of_cr4_is_found_and_those_of_other_control_registers_are_not() {
        // mov cr3, rax; mov rcx, cr4; mov cr4, rdi; mov cr4, r8
        let code = [
            0x0f, 0x22, 0xd8, 0x0f, 0x20, 0xe1, 0x0f, 0x22, 0xe7, 0x41, 0x0f, 0x22, 0xe0,
        ];
        assert_eq!(
            found(&code),
            [
                (6, Site::WriteCr4(GeneralRegister::new(7))),
                (9, Site::WriteCr4(GeneralRegister::new(8)))
            ]
        );
    }

    #[test]
    fn a_file_that_is_no_elf_is_refused() {
        assert!(matches!(rewrite(&mut [0; 64]), Err(RewriteError::Elf(_))));
    }
}
