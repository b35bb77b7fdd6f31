//! Where the current log lies: two superblocks, written in turn, of which the one with the higher generation counts, and
//! two areas, of which the generation chooses one. Recovery reads this, compaction writes it; this file alone knows the
//! bytes.

use alloc::vec::Vec;

use xxhash_rust::xxh3::xxh3_64;

use super::batch::Link;
use crate::disk::SECTOR_BYTES;

const MAGIC: u64 = u64::from_le_bytes(*b"LOCKSLOG");
const VERSION: u64 = 1;
/// The two superblocks lie a page apart, so that no disk writes both at once.
const SLOTS: [u64; 2] = [0, 8];
const FIRST_AREA: u64 = 16;
/// An area below this could not even hold one large value.
const AREA_SECTORS_MIN: u64 = 256;

/// Which log is the current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    /// Counts compactions; chooses slot and area.
    pub(super) generation: u64,
    /// What the first batch names as the one before it: random, so that a compaction that was cut off and one that was
    /// begun anew cannot be mixed up.
    pub(super) nonce: u64,
    /// How many batches were on disk, flushed, when this was written. With fewer the disk is broken.
    pub(super) batches: u64,
}

/// What lies in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// Nothing was ever written there.
    Blank,
    /// A superblock.
    Valid(Superblock),
    /// Something else.
    Foreign,
}

impl Superblock {
    /// The sector that it is written to.
    pub(super) fn sector(&self) -> u64 {
        SLOTS[(self.generation % 2) as usize]
    }

    /// The link of the first batch.
    pub(super) fn first_link(&self) -> Link {
        Link {
            generation: self.generation,
            sequence: 0,
            previous: self.nonce,
        }
    }

    /// The sector to write.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SECTOR_BYTES);
        for field in [MAGIC, VERSION, self.generation, self.nonce, self.batches] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        let check = xxh3_64(&bytes);
        bytes.extend_from_slice(&check.to_le_bytes());
        bytes.resize(SECTOR_BYTES, 0);
        bytes
    }

    /// Reads a slot's sector.
    pub(super) fn decode(sector: &[u8]) -> Slot {
        if sector.iter().all(|&byte| byte == 0) {
            return Slot::Blank;
        }
        let Some(fields) = sector.first_chunk::<48>() else {
            return Slot::Foreign;
        };
        let field = |at: usize| u64::from_le_bytes(core::array::from_fn(|byte| fields[8 * at + byte]));
        if field(0) != MAGIC || field(1) != VERSION || field(5) != xxh3_64(&fields[..40]) {
            return Slot::Foreign;
        }
        Slot::Valid(Superblock {
            generation: field(2),
            nonce: field(3),
            batches: field(4),
        })
    }
}

/// Where things lie on a disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    area_sectors: u64,
}

impl Layout {
    /// For a disk with so many sectors, if that is enough.
    pub(super) fn new(sectors: u64) -> Option<Self> {
        let area_sectors = sectors.saturating_sub(FIRST_AREA) / 2;
        (area_sectors >= AREA_SECTORS_MIN).then_some(Layout { area_sectors })
    }

    /// The slots of the superblocks.
    pub(super) fn slots(&self) -> [u64; 2] {
        SLOTS
    }

    /// The first sector of a generation's area, and the one after its last.
    pub(super) fn area(&self, generation: u64) -> (u64, u64) {
        let first = FIRST_AREA + (generation % 2) * self.area_sectors;
        (first, first + self.area_sectors)
    }

    /// How many bytes of live data may be kept: an eighth stays free, so that a compaction always gains room.
    pub(super) fn data_max(&self) -> u64 {
        self.area_sectors * SECTOR_BYTES as u64 / 8 * 7
    }
}
