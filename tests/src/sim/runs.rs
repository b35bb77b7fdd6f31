//! Guests as they were stopped in the middle of a run: what the deltas of a world carry, by number instead of by bytes.
//!
//! A live host keeps one and logs its number, a backup finds it again. A delta that is not whole finds nothing.

use bytes::Bytes;

use super::guest::Guest;

/// All that were stopped in this world.
#[derive(Debug, Default)]
pub(crate) struct Runs(Vec<Guest>);

impl Runs {
    /// Keeps a guest as it is now; what the end of its delta says.
    pub(crate) fn keep(&mut self, guest: &Guest) -> [u8; 8] {
        self.0.push(guest.clone());
        (self.0.len() as u64 - 1).to_le_bytes()
    }

    /// The guest of a delta whose pieces are numbered from 0 on.
    pub(crate) fn find(&self, pages: &[Bytes], end: &[u8]) -> Option<&Guest> {
        let is_whole = (0_u8..).zip(pages).all(|(number, piece)| piece[..] == [number]);
        let number = u64::from_le_bytes(end.try_into().ok()?);
        self.0.get(number as usize).filter(|_| is_whole)
    }
}
