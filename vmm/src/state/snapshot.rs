//! A snapshot file: one machine as it stood in one window. A header, then blocks, each with its length and checksum: the
//! machine's state first, then its memory as [`pages`] encodes it, then the end.
//!
//! `lockstep snapshot` has a running node write one ([`Draft`]), `lockstep run --from` starts from it ([`load`]). What is on
//! disks is not in it. A file that is not whole has another name.

use super::{MachineState, STATE_BYTES_MAX, StateError};
use crate::machine::{Machine, MachineSpec, RestoreError};
use crate::memory::GuestRam;
use crate::transfer::pages::{self, BadPages, PageEncoder, Pages};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;
use xxhash_rust::xxh3::xxh3_128;
use zerocopy::little_endian::{U32, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"LSSNAP\r\n";
/// The format of the blocks; the state inside has a version of its own.
const VERSION: u32 = 1;
/// So many bytes of pages make a block.
const BLOCK_BYTES: usize = 1 << 20;
/// No block is larger: the state, or a mebibyte of pages and the one that crossed the line.
const BLOCK_BYTES_MAX: usize = STATE_BYTES_MAX + 1024;

/// What a block is. 0 is invalid.
mod kind {
    pub(super) const MACHINE: u32 = 1;
    pub(super) const PAGES: u32 = 2;
    /// Nothing is in it and nothing follows.
    pub(super) const END: u32 = 3;
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    reserved: U32,
}

/// Before every block.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct BlockHeader {
    kind: U32,
    length: U32,
    checksum: U128,
}

/// Why no machine could be started from a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It cannot be opened.
    #[error("Cannot open the snapshot {}", .0.display())]
    Open(PathBuf, #[source] io::Error),
    /// It ends too early, or the disk fails.
    #[error("Cannot read the snapshot {}; if it is cut, take it anew", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// Something else.
    #[error("{} is no snapshot of Lockstep", .0.display())]
    Foreign(PathBuf),
    /// Another format.
    #[error("{} has snapshot format {theirs}, this release reads format {VERSION}; start it with the release that wrote it", .path.display())]
    Version {
        /// Which file.
        path: PathBuf,
        /// Its format's number.
        theirs: u32,
    },
    /// Not as it was written.
    #[error("The snapshot {} is damaged; take it anew", .0.display())]
    Damaged(PathBuf),
    /// The state is none.
    #[error("The snapshot {} cannot be used", .0.display())]
    State(PathBuf, #[source] StateError),
    /// The memory is none.
    #[error("The snapshot {} cannot be used", .0.display())]
    Memory(PathBuf, #[source] BadPages),
    /// It does not fit.
    #[error("The snapshot {} does not fit", .0.display())]
    Misfit(PathBuf, #[source] RestoreError),
}

/// A snapshot that is being written, under another name until it is whole. Dropped before that, it is gone.
#[derive(Debug)]
pub struct Draft {
    file: NamedTempFile,
    target: PathBuf,
}

impl Draft {
    /// Makes the file beside its target. Only its owner may read it: it is a guest's memory.
    ///
    /// # Errors
    /// When the directory does not take it.
    pub fn begin(target: &Path) -> io::Result<Self> {
        let file = tempfile::Builder::new()
            .prefix(".lockstep-snapshot-")
            .tempfile_in(directory(target))?;
        Ok(Self {
            file,
            target: target.into(),
        })
    }

    /// Writes a machine that stands still. Returns how many bytes it came to.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn write(&mut self, state: &MachineState, memory: &GuestRam) -> io::Result<u64> {
        let mut out = Blocks {
            out: BufWriter::with_capacity(BLOCK_BYTES, self.file.as_file_mut()),
            bytes: 0,
        };
        out.raw(
            Header {
                magic: MAGIC,
                version: VERSION.into(),
                reserved: U32::ZERO,
            }
            .as_bytes(),
        )?;
        out.block(kind::MACHINE, &state.encode())?;
        let (mut encoder, mut block) = (PageEncoder::default(), Pages::default());
        for page in pages::all(memory) {
            encoder.encode(memory, page, &mut block);
            if block.len() >= BLOCK_BYTES {
                out.block(kind::PAGES, &std::mem::take(&mut block).into_bytes())?;
            }
        }
        out.block(kind::PAGES, &block.into_bytes())?;
        out.block(kind::END, &[])?;
        out.out.flush()?;
        Ok(out.bytes)
    }

    /// Gives the whole file its name, so that it is there after a power cut too.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn finish(self) -> io::Result<()> {
        self.file.as_file().sync_all()?;
        self.file.persist(&self.target)?;
        File::open(directory(&self.target))?.sync_all()
    }
}

fn directory(target: &Path) -> &Path {
    let parent = target.parent();
    parent
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

struct Blocks<W> {
    out: W,
    bytes: u64,
}

impl<W: Write> Blocks<W> {
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn block(&mut self, kind: u32, content: &[u8]) -> io::Result<()> {
        let header = BlockHeader {
            kind: kind.into(),
            length: U32::new(u32::try_from(content.len()).expect("blocks are a few MiB at most")),
            checksum: xxh3_128(content).into(),
        };
        self.raw(header.as_bytes())?;
        self.raw(content)
    }
}

/// Makes the machine of a snapshot; `spec` says what the configuration wants it to be.
///
/// # Errors
/// When the file is not a whole, undamaged snapshot of such a machine, or this host cannot run it.
pub fn load(path: &Path, spec: MachineSpec) -> Result<Machine, SnapshotError> {
    let file = File::open(path).map_err(|error| SnapshotError::Open(path.into(), error))?;
    let mut reader = Reader {
        input: BufReader::with_capacity(BLOCK_BYTES, file),
        path,
    };
    reader.header()?;
    let (kind::MACHINE, content) = reader.block()? else {
        return Err(reader.damaged());
    };
    let state = MachineState::decode(&content).map_err(|error| SnapshotError::State(path.into(), error))?;
    let machine =
        Machine::restore(spec, &state).map_err(|error| SnapshotError::Misfit(path.into(), error))?;
    let mut count = 0;
    loop {
        match reader.block()? {
            (kind::PAGES, content) => {
                count += pages::apply(&content, machine.memory())
                    .map_err(|error| SnapshotError::Memory(path.into(), error))?;
            }
            (kind::END, _) => break,
            _ => return Err(reader.damaged()),
        }
    }
    // Every page is named once.
    match count == pages::all(machine.memory()).count() as u64 {
        true => Ok(machine),
        false => Err(reader.damaged()),
    }
}

struct Reader<'a, R> {
    input: R,
    path: &'a Path,
}

impl<R: Read> Reader<'_, R> {
    fn header(&mut self) -> Result<(), SnapshotError> {
        let mut header = Header::new_zeroed();
        match self.input.read_exact(header.as_mut_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(self.unread(error)),
            _ if header.magic != MAGIC => return Err(SnapshotError::Foreign(self.path.into())),
            Err(error) => return Err(self.unread(error)),
            Ok(()) => {}
        }
        match header.version.get() {
            VERSION => Ok(()),
            theirs => Err(SnapshotError::Version {
                path: self.path.into(),
                theirs,
            }),
        }
    }

    /// The next block, checked.
    fn block(&mut self) -> Result<(u32, Vec<u8>), SnapshotError> {
        let mut header = BlockHeader::new_zeroed();
        self.fill(header.as_mut_bytes())?;
        let length = usize::try_from(header.length.get()).expect("this crate is for 64-bit hosts");
        if length > BLOCK_BYTES_MAX {
            return Err(self.damaged());
        }
        let mut content = vec![0; length];
        self.fill(&mut content)?;
        match xxh3_128(&content) == header.checksum.get() {
            true => Ok((header.kind.get(), content)),
            false => Err(self.damaged()),
        }
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), SnapshotError> {
        self.input.read_exact(bytes).map_err(|error| self.unread(error))
    }

    fn unread(&self, error: io::Error) -> SnapshotError {
        SnapshotError::Read(self.path.into(), error)
    }

    fn damaged(&self) -> SnapshotError {
        SnapshotError::Damaged(self.path.into())
    }
}

#[cfg(test)]
mod tests;
