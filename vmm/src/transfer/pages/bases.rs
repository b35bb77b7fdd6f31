//! What a delta said last of a page, held alike on both sides of a log: of a page that comes again, only what changed in it
//! has to go over. Guests write the same pages again and again (stacks, rings, counters), and little in each.
//!
//! Both sides note the same pages in the same order, and a page has one place, which its number names. So both hold the same
//! without a word about it. Guest memory is not looked at: what a backup's guest did to a page meanwhile does not matter.

use super::PAGE;
use crate::state::dirty::Page;

/// Pages that are held, 16 MiB on each host: more than a guest writes between two deltas, unless it fills memory with new
/// content, of which no earlier one is of use.
const PLACES: usize = 4096;

/// The pages that both sides hold.
#[derive(Clone, Debug)]
pub struct Bases {
    places: Vec<Option<Base>>,
}

#[derive(Clone, Debug)]
struct Base {
    page: Page,
    bytes: Box<[u8; PAGE]>,
}

impl Default for Bases {
    /// None is held yet.
    fn default() -> Self {
        Self::with_places(PLACES)
    }
}

impl Bases {
    pub(super) fn with_places(count: usize) -> Self {
        Self {
            places: (0..count).map(|_| None).collect(),
        }
    }

    /// Changes `bytes` of `page` to what differs from what is held, or from that to what the page is: both are the same
    /// exclusive or. `false` if the page is not held.
    pub(super) fn exchange(&self, page: Page, bytes: &mut [u8; PAGE]) -> bool {
        let Some(base) = self.held(page) else { return false };
        for (byte, was) in bytes.iter_mut().zip(base.iter()) {
            *byte ^= was;
        }
        true
    }

    /// Holds what was sent or taken in for `page`, and no longer what was in its place.
    pub(super) fn note(&mut self, page: Page, bytes: &[u8; PAGE]) {
        let place = self.place(page);
        match &mut self.places[place] {
            Some(base) => {
                base.page = page;
                base.bytes.copy_from_slice(bytes);
            }
            empty => {
                let bytes = Box::new(*bytes);
                *empty = Some(Base { page, bytes });
            }
        }
    }

    fn held(&self, page: Page) -> Option<&[u8; PAGE]> {
        let base = self.places[self.place(page)].as_ref()?;
        (base.page == page).then_some(&base.bytes)
    }

    fn place(&self, page: Page) -> usize {
        super::index(page) % self.places.len()
    }
}
