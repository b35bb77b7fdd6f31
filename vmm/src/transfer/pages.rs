//! Pages of guest memory on their way to another host: what is sent for each, and how it is put in place.
//!
//! The source encodes with one [`PageEncoder`] for the whole move, the spare applies with [`apply`]. Zeros and repeated
//! content are not sent as bytes, and bytes are compressed where that pays. In a log of deltas, both sides hold what was sent
//! before ([`Bases`]), and a page that comes again is sent as its change. Nothing here knows streams or rounds.

mod apply;
mod bases;
mod encode;

pub use apply::{apply, apply_changes};
pub use bases::Bases;
pub use encode::{PageEncoder, Pages};

use crate::memory::GuestRam;
use crate::state::dirty::Page;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a page.
const PAGE: usize = Page::BYTES;
/// All pages of a memory, in order.
pub fn all(memory: &GuestRam) -> impl Iterator<Item = Page> + use<> {
    let end = memory
        .iter()
        .map(|region| region.start_addr().0 + region.len())
        .max()
        .unwrap_or(0);
    (0..end / PAGE as u64).map(Page::new)
}

/// How a page, or a run of them, is sent. 0 is invalid.
mod kind {
    /// `length` pages of zeros from here on; no bytes follow.
    pub(super) const ZEROS: u8 = 1;
    /// The page's bytes.
    pub(super) const RAW: u8 = 2;
    /// The page's bytes, compressed by LZ4 to `length` bytes.
    pub(super) const LZ4: u8 = 3;
    /// The number of a page that was sent before and holds the same.
    pub(super) const SAME: u8 = 4;
    /// The exclusive or of the page and what both sides hold of it, compressed by LZ4 to `length` bytes.
    pub(super) const CHANGE: u8 = 5;
}

/// Before what is sent for a page.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Entry {
    page: U32,
    kind: u8,
    reserved: u8,
    length: U16,
}

impl Entry {
    fn new(page: Page, kind: u8, length: u16) -> Self {
        Self {
            page: number(page),
            kind,
            reserved: 0,
            length: length.into(),
        }
    }
}

/// Why bytes are no pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPages {
    /// They end in the middle of a page.
    #[error("A piece of memory is cut off")]
    Cut,
    /// A page of a kind that there is not.
    #[error("A page of memory comes as kind {0}, which there is not")]
    Kind(u8),
    /// A page that this VM does not have.
    #[error("Page {0} of memory is sent, which this VM does not have")]
    Page(u64),
    /// This host has no memory for it.
    #[error("This host has no memory left for page {0} of the VM; free some")]
    NoMemory(u64),
    /// A change of a page, of which this side does not hold what it was.
    #[error("A change of page {0} of memory is sent, and this host does not hold what it was")]
    Base(u64),
    /// The compressed bytes are no page.
    #[error("Page {0} of memory does not come to a page's length")]
    Length(u64),
}

fn index(page: Page) -> usize {
    usize::try_from(page.get()).expect("guest memory is 3 GiB at most")
}

/// How a page is named on the way.
fn number(page: Page) -> U32 {
    U32::new(u32::try_from(page.get()).expect("guest memory is 3 GiB at most"))
}

#[cfg(test)]
mod tests;
