//! What a disk process tells its VMM of a mirrored image, without a message: which blocks it has changed; and what the VMM
//! tells it: that a pairing begins.
//!
//! The process notes a block after it was changed and before the request is completed. Whoever copies the image takes the
//! notes and then reads the blocks: so a block that changed while it was read is taken once more. Not for net devices.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::memory::{CHANGED_WORDS, SharedMemory, word};

/// Names a pairing of two hosts, and no other one ever.
pub type PairingId = [u8; 16];

/// The VMM's side, for the thread that copies the image.
#[derive(Clone, Debug)]
pub struct ChangesReader {
    memory: Arc<SharedMemory>,
}

impl ChangesReader {
    pub(crate) fn new(memory: Arc<SharedMemory>) -> Self {
        Self { memory }
    }

    /// The numbers of all blocks that were changed since this was asked last, in ascending order.
    pub fn take(&self) -> Vec<u32> {
        let mut blocks = Vec::new();
        for number in 0..CHANGED_WORDS {
            let word = self.memory.changed(number);
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::SeqCst);
            while bits != 0 {
                blocks.push(number as u32 * 64 + bits.trailing_zeros());
                bits &= bits - 1;
            }
        }
        blocks
    }
}

/// The device notes that a block was changed. A block beyond the last one that there can be is nobody's.
pub(crate) fn note(memory: &SharedMemory, block: u32) {
    let number = block as usize / 64;
    if number < CHANGED_WORDS {
        memory
            .changed(number)
            .fetch_or(1 << (block % 64), Ordering::SeqCst);
    }
}

/// The VMM begins a pairing. What it orders afterwards belongs to it.
pub(crate) fn begin_pairing(memory: &SharedMemory, id: PairingId) {
    for (place, half) in word::PAIRING.into_iter().zip(id.as_chunks::<8>().0) {
        memory
            .word(place)
            .store(u64::from_le_bytes(*half), Ordering::SeqCst);
    }
    memory.word(word::PAIRINGS).fetch_add(1, Ordering::SeqCst);
}

/// How many pairings have begun, and which was the last.
pub(crate) fn pairing(memory: &SharedMemory) -> (u64, PairingId) {
    let count = memory.word(word::PAIRINGS).load(Ordering::SeqCst);
    let [low, high] = word::PAIRING.map(|place| memory.word(place).load(Ordering::SeqCst));
    let id = (u128::from(high) << 64 | u128::from(low)).to_le_bytes();
    (count, id)
}
