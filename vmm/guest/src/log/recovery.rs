//! Power-on: finds the current log, replays it into the store, and leaves the log where it goes on. Called once, before
//! the network is up, so it may wait for the disk. A disk of zeros becomes an empty store; any other disk that holds no
//! log is refused rather than overwritten.

use alloc::vec::Vec;
use core::fmt;

use super::batch::{self, NoBatch};
use super::flight::Flight;
use super::superblock::{Layout, Slot, Superblock};
use super::{Log, Phase, Tail};
use crate::disk::{Disk, DiskError, Request, SECTOR_BYTES, Tag};
use crate::store::Store;
use crate::store::op::Op;
use crate::units::{Group, Time};

const READ_BYTES: usize = 256 << 10;
const RECOVERY: Tag = Tag(0);

/// Why a disk cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// A read or write failed.
    Disk,
    /// Fewer sectors than two areas need.
    Small,
    /// It holds something that is no log.
    Foreign,
    /// Batches are missing that were flushed long ago.
    Damaged,
}

impl fmt::Display for OpenError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            OpenError::Disk => "The disk cannot be read or written",
            OpenError::Small => "The disk is too small for a log",
            OpenError::Foreign => "The disk is neither blank nor does it hold a log of this guest",
            OpenError::Damaged => "The log on the disk has lost batches that were flushed",
        })
    }
}

impl From<DiskError> for OpenError {
    fn from(DiskError: DiskError) -> Self {
        OpenError::Disk
    }
}

/// Reads the log back into an empty store. `nonce` is any random number.
pub fn open(disk: &mut impl Disk, store: &mut Store, nonce: u64, now: Time) -> Result<Log, OpenError> {
    let layout = Layout::new(disk.sectors()).ok_or(OpenError::Small)?;
    let superblock = match current(disk, layout)? {
        Some(superblock) => superblock,
        None => format(disk, nonce)?,
    };
    let tail = replay(disk, layout, superblock, store, now)?;
    Ok(Log::new(
        Phase::Serving(Flight::default()),
        Some(layout),
        tail,
        crate::prng::mix(nonce ^ superblock.nonce),
    ))
}

/// The superblock that counts; none on a blank disk.
fn current(disk: &mut impl Disk, layout: Layout) -> Result<Option<Superblock>, OpenError> {
    let mut best: Option<Superblock> = None;
    let mut foreign = false;
    for sector in layout.slots() {
        match Superblock::decode(&read(disk, sector, SECTOR_BYTES)?) {
            Slot::Blank => (),
            Slot::Foreign => foreign = true,
            Slot::Valid(found) if best.is_none_or(|best| best.generation < found.generation) => {
                best = Some(found)
            }
            Slot::Valid(_) => (),
        }
    }
    // One bad slot beside a good one is a compaction that was cut off; on its own it is somebody else's data.
    if best.is_none() && foreign {
        Err(OpenError::Foreign)
    } else {
        Ok(best)
    }
}

fn format(disk: &mut impl Disk, nonce: u64) -> Result<Superblock, OpenError> {
    let superblock = Superblock {
        generation: 1,
        nonce,
        batches: 0,
    };
    perform(
        disk,
        Request::Write {
            sector: superblock.sector(),
            bytes: superblock.encode(),
        },
    )?;
    perform(disk, Request::Flush)?;
    Ok(superblock)
}

fn replay(
    disk: &mut impl Disk,
    layout: Layout,
    superblock: Superblock,
    store: &mut Store,
    now: Time,
) -> Result<Tail, OpenError> {
    let (sector, end) = layout.area(superblock.generation);
    let mut reader = Reader {
        disk: &mut *disk,
        sector,
        end,
        bytes: Vec::new(),
        start: 0,
    };
    let mut tail = Tail {
        sector,
        end,
        link: superblock.first_link(),
    };
    let mut last = now;
    loop {
        let opened = match batch::open(&mut reader.bytes[reader.start..], tail.link) {
            Ok(opened) => opened,
            Err(NoBatch::Needs(bytes)) if reader.fetch(bytes)? => continue,
            // The first batch that is not whole is where the last life of this log ended.
            Err(_) => break,
        };
        apply(&reader.bytes[reader.start..][opened.changes], store)?;
        last = opened.time;
        tail.link = tail.link.next(opened.check);
        tail.sector += (opened.bytes / SECTOR_BYTES) as u64;
        reader.start += opened.bytes;
    }
    if tail.link.sequence < superblock.batches {
        return Err(OpenError::Damaged);
    }
    // What was just read may have been written but not flushed; from here on it will be shown to clients.
    perform(disk, Request::Flush)?;
    store.rebase(last, now);
    Ok(tail)
}

fn apply(mut changes: &[u8], store: &mut Store) -> Result<(), OpenError> {
    while !changes.is_empty() {
        // The checksum was right, so this was written by us and must be readable.
        let (op, rest) = Op::decode(changes).map_err(|_| OpenError::Damaged)?;
        store.apply(&op, Group::ZERO);
        changes = rest;
    }
    Ok(())
}

/// Reads an area from front to back.
struct Reader<'a, D> {
    disk: &'a mut D,
    /// The next sector to read.
    sector: u64,
    end: u64,
    bytes: Vec<u8>,
    start: usize,
}

impl<D: Disk> Reader<'_, D> {
    /// Sees to it that so many bytes lie ready; false if the area ends before.
    fn fetch(&mut self, bytes: usize) -> Result<bool, OpenError> {
        self.bytes.drain(..self.start);
        self.start = 0;
        // Exactly, for doubling might take more than a small heap has.
        self.bytes
            .reserve_exact((bytes + READ_BYTES).saturating_sub(self.bytes.len()));
        while self.bytes.len() < bytes {
            let left = (self.end - self.sector) as usize * SECTOR_BYTES;
            if left == 0 {
                return Ok(false);
            }
            let chunk = read(self.disk, self.sector, READ_BYTES.min(left))?;
            self.sector += (chunk.len() / SECTOR_BYTES) as u64;
            self.bytes.extend_from_slice(&chunk);
        }
        Ok(true)
    }
}

fn read(disk: &mut impl Disk, sector: u64, bytes: usize) -> Result<Vec<u8>, OpenError> {
    Ok(perform(
        disk,
        Request::Read {
            sector,
            bytes: alloc::vec![0; bytes],
        },
    )?)
}

/// Does one request and waits for its end.
fn perform(disk: &mut impl Disk, request: Request) -> Result<Vec<u8>, DiskError> {
    disk.submit(RECOVERY, request).map_err(|_| DiskError)?;
    disk.kick();
    loop {
        if let Some(done) = disk.poll() {
            return done.result.map(|()| done.bytes);
        }
        disk.wait();
    }
}
