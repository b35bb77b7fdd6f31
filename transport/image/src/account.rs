//! What a map knows of its image, and what the maps of two hosts say together: which blocks may differ.
//!
//! While two hosts are a pair, both images get the same changes in the same order. Each map counts **turns**: a turn ends
//! at a flush, at the same one on both hosts. So a pairing and a number of turns name a content of the disk, and each image had
//! it on stable storage once its map counts so many. Every block has a **stamp**: the turn in which it changed last, or a
//! later one. Two images that both had one content differ at most in blocks that either map has stamped since.
//!
//! Pure: bytes in, bytes out. Who keeps a map is `map.rs`.

use crate::blocks::{Block, Grid};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Pairings that a map remembers: with more hosts than a few, who comes back after all others is copied whole.
pub(crate) const PAIRINGS_MAX: usize = 8;

/// Names one pairing of two hosts, and no other one ever.
pub type PairingId = [u8; 16];

/// What a map remembers of a pairing, in turns of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Pairing {
    pub(crate) id: PairingId,
    /// The turn in which it began.
    base: U32,
    /// The last turn that ended alike on both hosts; [`OPEN`] while it lasts.
    end: U32,
}

const OPEN: u32 = u32::MAX;

impl Pairing {
    pub(crate) fn begin(id: PairingId, base: u32) -> Self {
        Self {
            id,
            base: base.into(),
            end: OPEN.into(),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.end.get() == OPEN
    }

    pub(crate) fn base(&self) -> u32 {
        self.base.get()
    }

    /// Turns after `at` are not of this pairing.
    pub(crate) fn close(&mut self, at: u32) {
        self.end = self.end.get().min(at).into();
    }

    /// How many of its turns this image had on stable storage.
    fn turns(&self, now: u32) -> u32 {
        self.end.get().min(now).saturating_sub(self.base())
    }
}

/// What a map knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    grid: Grid,
    /// Turns that ended.
    pub(crate) turn: u32,
    /// Oldest first.
    pub(crate) pairings: Vec<Pairing>,
    /// For each block.
    pub(crate) stamps: Vec<U32>,
}

/// Before the pairings and the stamps of an account on its way to another host.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    image_bytes: zerocopy::little_endian::U64,
    turn: U32,
    pairings: U32,
}

impl Account {
    /// The account of an image of which nothing is known.
    #[must_use]
    pub fn unknown(grid: Grid) -> Self {
        Self {
            grid,
            turn: 0,
            pairings: Vec::new(),
            stamps: vec![U32::ZERO; grid.count() as usize],
        }
    }

    /// How the image is cut into blocks.
    #[must_use]
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// The blocks in which two images may differ, in ascending order; `None` if they were never known to be equal, and may
    /// differ anywhere.
    #[must_use]
    pub fn may_differ(&self, other: &Self) -> Option<Vec<Block>> {
        if self.grid != other.grid {
            return None;
        }
        // The newest pairing that both were in says most.
        let (ours, theirs) = self.pairings.iter().rev().find_map(|ours| {
            let theirs = other.pairings.iter().find(|theirs| theirs.id == ours.id)?;
            Some((ours, theirs))
        })?;
        let turns = ours.turns(self.turn).min(theirs.turns(other.turn));
        if turns == 0 {
            return None;
        }
        let (ours, theirs) = (ours.base() + turns, theirs.base() + turns);
        let differ = (0..self.grid.count()).map(Block::new).filter(|block| {
            self.stamps[block.index()].get() > ours || other.stamps[block.index()].get() > theirs
        });
        Some(differ.collect())
    }

    /// As bytes, for another host.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let head = Head {
            image_bytes: self.grid.image_bytes().into(),
            turn: self.turn.into(),
            pairings: u32::try_from(self.pairings.len()).unwrap_or(u32::MAX).into(),
        };
        [head.as_bytes(), self.pairings.as_bytes(), self.stamps.as_bytes()].concat()
    }

    /// From bytes; `None` when they make no sense.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = Head::read_from_prefix(bytes).ok()?;
        let grid = Grid::of(head.image_bytes.get());
        let count = usize::try_from(head.pairings.get()).ok()?;
        if count > PAIRINGS_MAX {
            return None;
        }
        let (pairings, rest) = <[Pairing]>::ref_from_prefix_with_elems(rest, count).ok()?;
        let stamps = <[U32]>::ref_from_bytes(rest).ok()?;
        (stamps.len() == grid.count() as usize).then(|| Self {
            grid,
            turn: head.turn.get(),
            pairings: pairings.to_vec(),
            stamps: stamps.to_vec(),
        })
    }

    /// Bytes that no account is longer than.
    pub const BYTES_MAX: usize = size_of::<Head>()
        + PAIRINGS_MAX * size_of::<Pairing>()
        + crate::blocks::BLOCKS_MAX as usize * size_of::<U32>();
}
