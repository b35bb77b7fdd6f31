//! The image as it is shipped: built as the VMM's build script builds it, then read instruction by instruction.

use std::path::PathBuf;
use std::process::Command;

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic};

/// Instructions whose result depends on more than memory and registers, or that leave ring 3.
const FORBIDDEN: &[Mnemonic] = &[
    Mnemonic::Rdtscp,
    Mnemonic::Rdpmc,
    Mnemonic::Rdpid,
    Mnemonic::Rdpru,
    Mnemonic::Rdrand,
    Mnemonic::Rdseed,
    Mnemonic::Cpuid,
    Mnemonic::Xgetbv,
    Mnemonic::Xbegin,
    Mnemonic::Xtest,
    Mnemonic::Umwait,
    Mnemonic::Tpause,
    Mnemonic::Hlt,
    Mnemonic::Int,
    Mnemonic::Into,
    Mnemonic::Syscall,
    Mnemonic::Sysenter,
    Mnemonic::Vmcall,
    Mnemonic::Vmmcall,
    Mnemonic::Iretq,
    Mnemonic::Sti,
    Mnemonic::Cli,
    Mnemonic::Sgdt,
    Mnemonic::Sidt,
    Mnemonic::Sldt,
    Mnemonic::Str,
    Mnemonic::Smsw,
];

fn image() -> Vec<u8> {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("image");
    let built = Command::new(env!("CARGO"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args([
            "build",
            "--release",
            "--locked",
            "--features",
            "image",
            "--bin",
            "lockstep-micro-guest",
        ])
        .arg("--target-dir")
        .arg(&target)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .status()
        .expect("cargo runs this test, so it can be started");
    assert!(built.success());
    std::fs::read(target.join("release/lockstep-micro-guest")).expect("cargo has just built it")
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len]
        .iter()
        .rev()
        .fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// Address and bytes of each executable segment of an ELF file.
fn code(elf: &[u8]) -> Vec<(u64, &[u8])> {
    let (table, entry, count) = (number(elf, 32, 8), number(elf, 54, 2), number(elf, 56, 2));
    let header = |at: u64| &elf[(table + at * entry) as usize..];
    (0..count)
        .map(header)
        .filter(|header| number(header, 0, 4) == 1 && number(header, 4, 4) & 1 != 0)
        .map(|header| {
            (
                number(header, 16, 8),
                &elf[number(header, 8, 8) as usize..][..number(header, 32, 8) as usize],
            )
        })
        .collect()
}

fn instructions(elf: &[u8]) -> Vec<Instruction> {
    code(elf)
        .into_iter()
        .flat_map(|(address, bytes)| {
            Decoder::with_ip(64, bytes, address, DecoderOptions::NONE)
                .into_iter()
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn the_image_holds_no_instruction_that_a_replay_could_see_differently_but_that_of_the_command_tsc() {
    let elf = image();
    assert_eq!(number(&elf, 16, 2), 2, "a static EXEC");
    assert_eq!(
        number(&elf, 24, 8),
        lockstep_guest::abi::IMAGE_BASE,
        "entered at its first byte"
    );

    let instructions = instructions(&elf);
    assert!(instructions.len() > 10_000);
    let forbidden: Vec<String> = instructions
        .iter()
        .filter(|instruction| {
            FORBIDDEN.contains(&instruction.mnemonic()) || instruction.code() == Code::INVALID
        })
        .map(|instruction| format!("{:x}: {instruction}", instruction.ip()))
        .collect();
    assert_eq!(forbidden, [""; 0]);
    let counters = instructions
        .iter()
        .filter(|instruction| instruction.mnemonic() == Mnemonic::Rdtsc);
    assert_eq!(counters.count(), 1);
}
