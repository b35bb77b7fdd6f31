//! Machines as somebody else wrote them: states, snapshot files, and the pieces in which a running VM comes to a spare.
//! Lengths and checksums are put right before anything is read: whoever forges a state does so too.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_protocol::ids::{GuestTime, Position};
use lockstep_quic::state::PieceHead;
use lockstep_vmm::board::Board;
use lockstep_vmm::machine::{Guest, MachineSpec};
use lockstep_vmm::memory::{self, GuestRam};
use lockstep_vmm::run::MICRO_GUEST;
use lockstep_vmm::state::{MachineState, snapshot};
use lockstep_vmm::transfer::intake::{Intake, Step};
use lockstep_vmm::transfer::pages::{self, Bases};
use lockstep_vmm::transfer::progress::Progress;
use lockstep_vmm::virtio::mmio::{DeviceKind, MmioState};
use nix::sys::memfd::{MFdFlags, memfd_create};
use xxhash_rust::xxh3::xxh3_128;

use super::chains::{memory_of, new_device, use_device};

/// Where the length and the checksum of a state stand.
const LENGTH: std::ops::Range<usize> = 12..16;
const CHECKSUM: std::ops::Range<usize> = 16..48;
/// MiB of the machine that a snapshot is of.
const MEMORY_MIB: u64 = 64;
/// So many accesses are made to a board at most.
const ACCESSES_MAX: usize = 256;

/// A state whose length and checksum are right.
fn dressed(bytes: &[u8]) -> Vec<u8> {
    let mut state = bytes.to_vec();
    if let Some((_, body)) = bytes.split_at_checked(CHECKSUM.end) {
        let length = u32::try_from(body.len()).expect("no input is so long");
        state[LENGTH].copy_from_slice(&length.to_le_bytes());
        state[CHECKSUM].copy_from_slice(blake3::hash(body).as_bytes());
    }
    state
}

/// A state is refused, or means the same when it is written and read again.
pub(super) fn machine(bytes: &[u8]) {
    if let Ok(state) = MachineState::decode(&dressed(bytes)) {
        let written = state.encode();
        let again = MachineState::decode(&written).expect("what was understood can be written and read");
        assert!(again.encode() == written, "a state has one form");
    }
}

/// A length, so many bytes, and what follows.
fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let ([low, high], rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes([*low, *high])))
}

/// A board that came from elsewhere, and a guest that uses it.
pub(super) fn board(bytes: &[u8]) {
    let Some((state, accesses)) = part(bytes) else {
        return;
    };
    let Ok(mut board) = postcard::from_bytes::<Board>(state) else {
        return;
    };
    let memory = memory_of(&[]);
    for access in accesses.chunks_exact(4).take(ACCESSES_MAX) {
        use_board(&mut board, &memory, access);
    }
}

fn use_board(board: &mut Board, memory: &GuestRam, access: &[u8]) {
    let &[what, low, high, value] = access else { return };
    let port = u16::from_le_bytes([low, high]);
    match (what % 8, board) {
        (0, board) => {
            let _ = board.port_write(port, &[value]);
        }
        (1, board) => {
            let _ = board.port_write(port, &[value, low, high, what]);
        }
        (2, board) => {
            let _ = board.port_read(port, &mut [value], Position::new(value.into()));
        }
        (3, board) => {
            let _ = board.port_read(port, &mut [0; 4], Position::new(value.into()));
        }
        (4, board) => board.console_input(&[value; 40]),
        (5, board) => drop(board.take_console()),
        (6, Board::Pc(pc)) => {
            let later = u64::from(port) << (value % 48);
            let now = pc.now().saturating_add(later).min(GuestTime::new(1 << 62).get());
            pc.set_time(GuestTime::new(now), memory);
            let _ = pc.next_deadline();
        }
        (_, Board::Pc(pc)) => {
            pc.drive_lines([value & 1 != 0, value & 2 != 0].into_iter());
            if pc.has_interrupt() {
                pc.acknowledge();
            }
            let _ = pc.msr_read(u32::from(port), Position::ZERO);
        }
        (_, Board::Micro(_)) => {}
    }
}

/// So much of the input is the guest's memory.
const RINGS: usize = 1024;

/// A device's window that came from elsewhere, and a guest that uses it.
pub(super) fn device(bytes: &[u8]) {
    let Some((state, rest)) = part(bytes) else { return };
    let Ok(state) = postcard::from_bytes::<MmioState>(state) else {
        return;
    };
    let (rings, accesses) = rest.split_at(rest.len().min(RINGS));
    let memory = Arc::new(memory_of(rings));
    for kind in [DeviceKind::Net, DeviceKind::Blk] {
        let mut device = new_device(kind);
        if device.restore(&state).is_ok() {
            use_device(&mut device, &memory, accesses);
        }
    }
}

/// Bytes before the first block of a snapshot, and before each block: kind, length, checksum.
const FILE_HEADER: usize = 16;
const BLOCK_HEADER: usize = 24;
const MACHINE_BLOCK: u32 = 1;

/// A snapshot file whose lengths and checksums are right.
fn dressed_snapshot(bytes: &[u8]) -> Vec<u8> {
    let (header, mut rest) = bytes.split_at(bytes.len().min(FILE_HEADER));
    let mut file = header.to_vec();
    while let Some((header, content)) = rest.split_at_checked(BLOCK_HEADER) {
        let [kind, length] = [0, 4].map(|at| {
            let word = header[at..at + 4].try_into().expect("four bytes");
            u32::from_le_bytes(word)
        });
        let length = usize::try_from(length).map_or(content.len(), |length| length.min(content.len()));
        let (content, after) = content.split_at(length);
        let content = match kind {
            MACHINE_BLOCK => dressed(content),
            _ => content.to_vec(),
        };
        let length = u32::try_from(length).expect("no input is so long");
        file.extend(kind.to_le_bytes());
        file.extend(length.to_le_bytes());
        file.extend(xxh3_128(&content).to_le_bytes());
        file.extend(content);
        rest = after;
    }
    file.extend(rest);
    file
}

/// A snapshot is refused in words, or there is a machine.
pub(super) fn snapshot(bytes: &[u8]) {
    let file = memfd_create(c"snapshot", MFdFlags::MFD_CLOEXEC).expect("there is memory for a file");
    let mut file = File::from(file);
    file.write_all(&dressed_snapshot(bytes))
        .expect("a small file fits memory");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let spec = MachineSpec {
        vcpus: lockstep_vmm::vcpu::VcpuCount::ONE,
        memory_mib: MEMORY_MIB,
        guest: Guest::Micro(MICRO_GUEST),
        cmdline: String::new(),
        devices: vec![],
    };
    if let Err(error) = snapshot::load(&path, spec) {
        assert!(!error.to_string().is_empty(), "a refusal says why");
    }
}

/// A host that says whatever it likes to a spare.
pub(super) fn pieces(mut bytes: &[u8]) {
    let memory = memory::create(1).expect("there is memory for a guest as small as this");
    let progress = Progress::default();
    progress.begin();
    let mut intake = Intake::new(&memory, None, &progress);
    let mut bases = Bases::default();
    while let Some((head, rest)) = bytes.split_first_chunk() {
        let Ok(head) = PieceHead::read(*head) else { return };
        let (piece, rest) = rest.split_at(rest.len().min(head.length));
        // The last piece of a copy is where the log begins, and a state.
        let piece = match piece.split_at_checked(8) {
            Some((start, state)) if head.kind == MACHINE_PIECE => [start, &dressed(state)].concat(),
            _ => piece.to_vec(),
        };
        // In a log, the same pieces are deltas.
        let _ = pages::apply_changes(&mut bases, &piece, &memory);
        match intake.handle_piece(head.kind, Bytes::from(piece)) {
            Ok(Step::Next | Step::Confirm) => {}
            Ok(Step::Taken(_)) | Err(_) => return,
        }
        bytes = rest;
    }
}

const MACHINE_PIECE: u8 = 2;
