//! The unit in which changes are noted: an image is cut into at most [`BLOCKS_MAX`] blocks of equal size, so that whatever
//! is kept for each of them is bounded however large the disk is. Pure arithmetic.

use std::ops::Range;

/// Blocks of an image at most: a map has 4 bytes for each.
pub const BLOCKS_MAX: u64 = 1 << 20;
/// The smallest block: finer would make a map longer and save little.
const BYTES_MIN: u64 = 64 << 10;

/// The number of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block(u32);

impl Block {
    /// Block `number`.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// How an image is cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    image_bytes: u64,
    block_bytes: u64,
}

impl Grid {
    /// The grid of an image so long; both hosts have the same one.
    #[must_use]
    pub fn of(image_bytes: u64) -> Self {
        Self {
            image_bytes,
            block_bytes: image_bytes
                .div_ceil(BLOCKS_MAX)
                .next_power_of_two()
                .max(BYTES_MIN),
        }
    }

    /// How long the image is.
    #[must_use]
    pub fn image_bytes(self) -> u64 {
        self.image_bytes
    }

    /// How long a block is; the last one may be shorter.
    #[must_use]
    pub fn block_bytes(self) -> u64 {
        self.block_bytes
    }

    /// How many there are.
    #[must_use]
    pub fn count(self) -> u32 {
        u32::try_from(self.image_bytes.div_ceil(self.block_bytes)).expect("there are BLOCKS_MAX at most")
    }

    /// Every block that `bytes` at `at` touch, as far as there are such.
    pub fn touched(self, at: u64, bytes: u64) -> impl Iterator<Item = Block> {
        let end = at.saturating_add(bytes).min(self.image_bytes);
        let first = at.min(end) / self.block_bytes;
        let after = end.div_ceil(self.block_bytes);
        let numbers = match at < end {
            true => self.clamp(first)..self.clamp(after),
            false => 0..0,
        };
        numbers.map(Block)
    }

    /// Where a block lies in the image; nowhere if there is no such block.
    #[must_use]
    pub fn range(self, block: Block) -> Range<u64> {
        let start = (u64::from(block.0) * self.block_bytes).min(self.image_bytes);
        start..(start + self.block_bytes).min(self.image_bytes)
    }

    fn clamp(self, number: u64) -> u32 {
        u32::try_from(number).map_or(self.count(), |number| number.min(self.count()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(grid: Grid, at: u64, bytes: u64) -> Vec<u32> {
        grid.touched(at, bytes).map(Block::get).collect()
    }

    #[test]
    fn an_image_of_any_length_has_a_bounded_number_of_blocks() {
        for bytes in [512, 64 << 10, (64 << 10) + 512, 1 << 30, 1 << 44, u64::MAX / 4] {
            let grid = Grid::of(bytes);
            assert!(u64::from(grid.count()) <= BLOCKS_MAX, "{bytes}");
            assert!(u64::from(grid.count()) * grid.block_bytes() >= bytes, "{bytes}");
        }
    }

    #[test]
    fn bytes_touch_every_block_that_they_lie_in_and_no_other() {
        let grid = Grid::of(200_000);
        assert_eq!(grid.count(), 4);
        assert_eq!(numbers(grid, 0, 1), [0]);
        assert_eq!(numbers(grid, 65_535, 2), [0, 1]);
        assert_eq!(numbers(grid, 131_072, 65_536), [2]);
        assert_eq!(numbers(grid, 199_999, 1), [3]);
        assert_eq!(numbers(grid, 0, u64::MAX), [0, 1, 2, 3]);
        assert_eq!(numbers(grid, 5, 0), [0; 0]);
        assert_eq!(numbers(grid, 200_000, 512), [0; 0]);
    }

    #[test]
    fn the_last_block_ends_with_the_image() {
        let grid = Grid::of(200_000);
        assert_eq!(grid.range(Block::new(3)), 196_608..200_000);
        assert!(grid.range(Block::new(9)).is_empty());
    }
}
