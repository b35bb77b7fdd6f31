//! The disk that all hosts share. It holds what has landed on it, and nothing keeps a late write out: that is for the
//! protocol to see to.

use super::guest::{Block, SECTORS};

/// All sectors.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedDisk {
    sectors: [Block; SECTORS as usize],
}

impl SharedDisk {
    /// What is in a sector.
    pub(crate) fn read(&self, sector: u64) -> Block {
        self.sectors[(sector % SECTORS) as usize]
    }

    /// A write has landed.
    pub(crate) fn write(&mut self, sector: u64, block: Block) {
        self.sectors[(sector % SECTORS) as usize] = block;
    }

    /// The newest state on it: what a guest finds that is switched on now.
    pub(crate) fn newest(&self) -> super::chain::State {
        self.sectors.iter().map(|block| block.0).max().unwrap_or_default()
    }
}
