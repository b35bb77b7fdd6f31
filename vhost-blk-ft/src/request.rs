//! A virtio-blk request: what a chain asks the disk for, checked against the disk and against our bounds.
//!
//! Called with every chain, in plain and in protected mode alike. It reads guest memory (header and ranges, each once),
//! never writes it, and never touches the disk. A request that is wrong but has a place for its status is a request
//! that is refused; a chain without such a place is an error and goes back with length 0.

use lockstep_staging::chain::{BadChain, Chain, Segment};
use thiserror::Error;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{Bytes, GuestMemory};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::limits::{DISCARD_SECTORS_MAX, RANGES_MAX, SECTOR, SERIAL_BYTES, ZERO_SECTORS_MAX};

/// How a request ended, as the guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = VIRTIO_BLK_S_OK as u8,
    /// The disk failed, or the request is wrong.
    IoError = VIRTIO_BLK_S_IOERR as u8,
    /// The device does not do such things.
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// What the checks need to know of the disk and of the mode we run in.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes on the disk.
    pub disk_bytes: u64,
    /// The guest may not write.
    pub read_only: bool,
    /// The most data bytes of one read or write.
    pub transfer_max: u32,
}

/// A place on the disk, inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first byte.
    pub at: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// What the disk is asked to do. Everything in here was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Fill the reply's data part from here.
    Read(Extent),
    /// Write what these segments hold.
    Write(Extent, Vec<Segment>),
    /// Everything completed so far must be on the disk.
    Flush,
    /// What is the disk called?
    GetId,
    /// The content of these is of no interest any more.
    Discard(Vec<Extent>),
    /// These read as zeros from now on; `unmap`: their blocks may be freed.
    WriteZeroes {
        /// Where.
        extents: Vec<Extent>,
        /// May the blocks be freed?
        unmap: bool,
    },
    /// Nothing: the request is wrong, and this is what the guest is told.
    Refuse(Status),
}

impl Command {
    /// The same for a disk that two hosts have an image of each. Storage may take a discard for mere advice, and the images
    /// would differ afterwards: so it is a write-zeroes, and no range is longer than those may be.
    pub fn mirrored(self) -> Self {
        const BYTES_MAX: u64 = ZERO_SECTORS_MAX as u64 * SECTOR;
        match self {
            Self::Discard(extents) if extents.iter().any(|extent| extent.bytes > BYTES_MAX) => {
                Self::Refuse(Status::IoError)
            }
            Self::Discard(extents) => Self::WriteZeroes { extents, unmap: true },
            other => other,
        }
    }
}

/// Where the answer goes: data, then the status as the very last byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The writable part of the chain, status byte included.
    pub segments: Vec<Segment>,
    /// Bytes of all segments together; at least 1.
    pub length: u32,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// Where to answer.
    pub reply: Reply,
}

/// Why a chain cannot even be answered.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NoAnswer {
    /// It has no correct form.
    #[error(transparent)]
    Chain(#[from] BadChain),
    /// It has no writable byte for the status.
    #[error("A request has no place for its status")]
    NoStatus,
    /// Its answer would be longer than an answer may be.
    #[error("A request asks for more bytes than an answer may have")]
    TooLong,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    kind: u32,
    priority: u32,
    sector: u64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RangeBytes {
    sector: u64,
    sectors: u32,
    flags: u32,
}

impl Reply {
    fn new(segments: Vec<Segment>, bounds: &Bounds) -> Result<Self, NoAnswer> {
        // The walk proved that the sum fits 32 bits.
        let length = segments.iter().map(|segment| segment.length).sum::<u32>();
        match length.checked_sub(1) {
            None => Err(NoAnswer::NoStatus),
            Some(data) if data > bounds.transfer_max => Err(NoAnswer::TooLong),
            Some(_) => Ok(Self { segments, length }),
        }
    }

    /// Bytes before the status.
    pub fn data_length(&self) -> u32 {
        self.length - 1
    }
}

impl Request {
    /// Makes a request of a chain.
    pub fn parse<M: GuestMemory>(memory: &M, chain: Chain, bounds: &Bounds) -> Result<Self, NoAnswer> {
        let reply = Reply::new(chain.writable, bounds)?;
        let command = match parse_command(memory, chain.readable, &reply, bounds) {
            Ok(command) => command,
            Err(status) => Command::Refuse(status),
        };
        Ok(Self { command, reply })
    }
}

fn parse_command<M: GuestMemory>(
    memory: &M,
    mut said: Vec<Segment>,
    reply: &Reply,
    bounds: &Bounds,
) -> Result<Command, Status> {
    let mut header = Header::new_zeroed();
    take(memory, &mut said, header.as_mut_bytes())?;
    // Guests of version 1.0 are little-endian; so is every host that this runs on.
    let writes = matches!(
        header.kind,
        VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES
    );
    if writes && bounds.read_only {
        return Err(Status::IoError);
    }
    match header.kind {
        VIRTIO_BLK_T_IN => Ok(Command::Read(transfer(
            header.sector,
            u64::from(reply.data_length()),
            bounds,
        )?)),
        VIRTIO_BLK_T_OUT => {
            let bytes = said.iter().map(|segment| u64::from(segment.length)).sum();
            Ok(Command::Write(transfer(header.sector, bytes, bounds)?, said))
        }
        VIRTIO_BLK_T_FLUSH => Ok(Command::Flush),
        VIRTIO_BLK_T_GET_ID if reply.data_length() as usize >= SERIAL_BYTES => Ok(Command::GetId),
        VIRTIO_BLK_T_GET_ID => Err(Status::IoError),
        VIRTIO_BLK_T_DISCARD => {
            // "Unmap" means nothing here, and the specification wants it refused.
            let (extents, _) = ranges(memory, said, DISCARD_SECTORS_MAX, 0, bounds)?;
            Ok(Command::Discard(extents))
        }
        VIRTIO_BLK_T_WRITE_ZEROES => {
            let known = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
            let (extents, flags) = ranges(memory, said, ZERO_SECTORS_MAX, known, bounds)?;
            Ok(Command::WriteZeroes {
                extents,
                unmap: flags == known,
            })
        }
        _ => Err(Status::Unsupported),
    }
}

/// A read or a write: whole sectors, some of them, not too many, on the disk.
fn transfer(sector: u64, bytes: u64, bounds: &Bounds) -> Result<Extent, Status> {
    if bytes == 0 || bytes > u64::from(bounds.transfer_max) {
        return Err(Status::IoError);
    }
    on_disk(sector, bytes, bounds)
}

fn on_disk(sector: u64, bytes: u64, bounds: &Bounds) -> Result<Extent, Status> {
    let at = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
    let end = at.checked_add(bytes).ok_or(Status::IoError)?;
    if !bytes.is_multiple_of(SECTOR) || end > bounds.disk_bytes {
        return Err(Status::IoError);
    }
    Ok(Extent { at, bytes })
}

/// The ranges of a discard or write-zeroes request, and the flags that all of them have in common.
fn ranges<M: GuestMemory>(
    memory: &M,
    mut said: Vec<Segment>,
    sectors_max: u32,
    known_flags: u32,
    bounds: &Bounds,
) -> Result<(Vec<Extent>, u32), Status> {
    let bytes: u64 = said.iter().map(|segment| u64::from(segment.length)).sum();
    let entry = size_of::<RangeBytes>() as u64;
    if bytes == 0 || !bytes.is_multiple_of(entry) || bytes > u64::from(RANGES_MAX) * entry {
        return Err(Status::IoError);
    }
    let mut extents = Vec::new();
    let mut common = known_flags;
    for _ in 0..bytes / entry {
        let mut range = RangeBytes::new_zeroed();
        take(memory, &mut said, range.as_mut_bytes())?;
        if range.flags & !known_flags != 0 {
            return Err(Status::Unsupported);
        }
        if range.sectors > sectors_max {
            return Err(Status::IoError);
        }
        common &= range.flags;
        extents.push(on_disk(range.sector, u64::from(range.sectors) * SECTOR, bounds)?);
    }
    Ok((extents, common))
}

/// Reads the first bytes that the driver said, however it cut them up, and leaves the rest.
fn take<M: GuestMemory>(memory: &M, said: &mut Vec<Segment>, bytes: &mut [u8]) -> Result<(), Status> {
    let mut filled = 0;
    let mut used_up = 0;
    for segment in said.iter_mut() {
        let part = (segment.length as usize).min(bytes.len() - filled);
        // The walk proved that the segment lies in memory; it may have been unplugged since.
        memory
            .read_slice(&mut bytes[filled..filled + part], segment.start)
            .map_err(|_| Status::IoError)?;
        filled += part;
        segment.start.0 += part as u64;
        segment.length -= u32::try_from(part).expect("a part of a segment is no longer than the segment");
        if segment.length > 0 {
            break;
        }
        used_up += 1;
    }
    said.drain(..used_up);
    if filled == bytes.len() {
        Ok(())
    } else {
        Err(Status::IoError)
    }
}

#[cfg(test)]
mod tests;
