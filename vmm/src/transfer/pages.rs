//! Pages of guest memory on their way to another host: what is sent for each, and how it is put in place.
//!
//! The source encodes with one [`PageEncoder`] for the whole move, the spare applies with [`apply`]. Zeros and repeated
//! content are not sent as bytes, and bytes are compressed where that pays. In a log of deltas, both sides hold what was sent
//! before ([`Bases`]), and a page that comes again is sent as its change. Nothing here knows streams or rounds.

mod bases;

pub use bases::Bases;

use crate::memory::{self, GuestRam};
use crate::state::dirty::Page;
use bytes::{BufMut, BytesMut};
use std::os::unix::fs::FileExt;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};
use xxhash_rust::xxh3::xxh3_128;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a page.
const PAGE: usize = Page::BYTES;
/// Compressed bytes are sent only if they are fewer than this: below an eighth of gain the work is not worth it.
const PAYS: usize = PAGE - PAGE / 8;

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

/// Encodes pages, and remembers what the other side holds.
#[derive(Debug, Default)]
pub struct PageEncoder {
    /// What was sent last for a page; [`NOTHING`] for zeros and for pages that were not sent.
    sent: Vec<u128>,
    /// Pages by their content, each in the one place that the content names: who comes later drives the other out, and a
    /// repetition that is missed costs its bytes.
    holders: Vec<Page>,
    /// Attempts to compress that did not pay, since one did.
    failed: u32,
    scratch: Vec<u8>,
}

/// No content has this name, as far as chance goes; who has it is sent as bytes.
const NOTHING: u128 = 0;
/// After so many attempts to compress that did not pay, only one page of so many is tried: memory that does not compress
/// then costs little more than its bytes.
const FAILED_MAX: u32 = 16;
const OURS: &str = "only pages of this memory are sent";

impl PageEncoder {
    /// Appends what the other side needs to have `page` as it is in `memory` now. The guest may be writing to it: what
    /// is torn by that is noted as written, and is sent again.
    ///
    /// # Panics
    /// When the memory does not have the page.
    pub fn encode(&mut self, memory: &GuestRam, page: Page, out: &mut Pages) {
        let bytes = content_of(page, memory).expect(OURS);
        if !self.encode_known(memory, page, &bytes, out) {
            self.add_bytes(page, &bytes, out);
        }
    }

    /// The same, for a side that holds `bases`, too.
    ///
    /// # Panics
    /// When the memory does not have the page.
    pub fn encode_change(&mut self, bases: &mut Bases, memory: &GuestRam, page: Page, out: &mut Pages) {
        let bytes = content_of(page, memory).expect(OURS);
        if self.encode_known(memory, page, &bytes, out) {
            return;
        }
        let mut change = bytes;
        let packed = bases.exchange(page, &mut change).then(|| self.pack(&change));
        match packed.flatten() {
            Some(length) => out.add(page, kind::CHANGE, length, &self.scratch[..length]),
            None => self.add_bytes(page, &bytes, out),
        }
        bases.note(page, &bytes);
    }

    /// The other side may no longer hold what was sent for these pages, all that were sent.
    pub fn forget(&mut self, pages: &[Page]) {
        for page in pages {
            self.sent[index(*page)] = NOTHING;
        }
    }

    /// Appends a page of zeros, or one that the other side has elsewhere. `false` if it is none.
    fn encode_known(&mut self, memory: &GuestRam, page: Page, bytes: &[u8; PAGE], out: &mut Pages) -> bool {
        if self.sent.is_empty() {
            let count = usize::try_from(all(memory).last().map_or(0, Page::get) + 1);
            let count = count.expect("guest memory is 3 GiB at most");
            self.sent = vec![NOTHING; count];
            self.holders = vec![Page::new(0); count.next_power_of_two()];
        }
        if *bytes == [0; PAGE] {
            self.sent[index(page)] = NOTHING;
            out.add_zero(page);
            return true;
        }
        let content = xxh3_128(bytes);
        self.sent[index(page)] = content;
        let place = content as usize & (self.holders.len() - 1);
        let holder = std::mem::replace(&mut self.holders[place], page);
        // It may hold something else by now.
        let is_there = holder != page && content != NOTHING && self.sent[index(holder)] == content;
        if is_there {
            self.holders[place] = holder;
            out.add(page, kind::SAME, 4, number(holder).as_bytes());
        }
        is_there
    }

    fn add_bytes(&mut self, page: Page, bytes: &[u8; PAGE], out: &mut Pages) {
        let tries = self.failed < FAILED_MAX || page.get().is_multiple_of(u64::from(FAILED_MAX));
        if tries {
            if let Some(length) = self.pack(bytes) {
                self.failed = 0;
                return out.add(page, kind::LZ4, length, &self.scratch[..length]);
            }
            self.failed = self.failed.saturating_add(1);
        }
        out.add(page, kind::RAW, PAGE, bytes);
    }

    /// Compresses into the scratch, if that pays: to so many bytes.
    fn pack(&mut self, bytes: &[u8; PAGE]) -> Option<usize> {
        self.scratch
            .resize(lz4_flex::block::get_maximum_output_size(PAGE), 0);
        let length = lz4_flex::block::compress_into(bytes, &mut self.scratch).ok()?;
        (length < PAYS).then_some(length)
    }
}

fn index(page: Page) -> usize {
    usize::try_from(page.get()).expect("guest memory is 3 GiB at most")
}

/// Encoded pages, to be sent as one piece.
#[derive(Debug, Default)]
pub struct Pages {
    bytes: BytesMut,
    /// A run of zeros at the end that may still grow: its first page, and how many.
    zeros: Option<(Page, u16)>,
}

impl Pages {
    /// Room for about so many bytes.
    #[must_use]
    pub fn with_room(bytes: usize) -> Self {
        Self {
            bytes: BytesMut::with_capacity(bytes + PAGE + size_of::<Entry>()),
            zeros: None,
        }
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was encoded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.zeros.is_none()
    }

    /// All of it.
    #[must_use]
    pub fn into_bytes(mut self) -> BytesMut {
        self.end_zeros();
        self.bytes
    }

    fn add_zero(&mut self, page: Page) {
        match &mut self.zeros {
            Some((first, count)) if first.get() + u64::from(*count) == page.get() && *count < u16::MAX => {
                *count += 1
            }
            _ => {
                self.end_zeros();
                self.zeros = Some((page, 1));
            }
        }
    }

    fn end_zeros(&mut self) {
        if let Some((first, count)) = self.zeros.take() {
            self.put(first, kind::ZEROS, count);
        }
    }

    fn add(&mut self, page: Page, kind: u8, length: usize, bytes: &[u8]) {
        self.end_zeros();
        self.put(page, kind, u16::try_from(length).expect("a page is 4 KiB"));
        self.bytes.put_slice(bytes);
    }

    fn put(&mut self, page: Page, kind: u8, length: u16) {
        let entry = Entry {
            page: number(page),
            kind,
            reserved: 0,
            length: length.into(),
        };
        self.bytes.put_slice(entry.as_bytes());
    }
}

/// How a page is named on the way.
fn number(page: Page) -> U32 {
    U32::new(u32::try_from(page.get()).expect("guest memory is 3 GiB at most"))
}

/// Puts encoded pages in their places, and says how many there were.
///
/// # Errors
/// When they are no pages of this memory.
pub fn apply(bytes: &[u8], memory: &GuestRam) -> Result<u64, BadPages> {
    apply_with(None, bytes, memory)
}

/// The same, for a side that holds `bases`, too.
///
/// # Errors
/// When they are no pages of this memory, or changes of pages that are not held.
pub fn apply_changes(bases: &mut Bases, bytes: &[u8], memory: &GuestRam) -> Result<u64, BadPages> {
    apply_with(Some(bases), bytes, memory)
}

fn apply_with(mut bases: Option<&mut Bases>, mut bytes: &[u8], memory: &GuestRam) -> Result<u64, BadPages> {
    let mut count = 0;
    while !bytes.is_empty() {
        let (entry, rest) = Entry::read_from_prefix(bytes).map_err(|_| BadPages::Cut)?;
        let page = Page::new(entry.page.get().into());
        let length = usize::from(entry.length.get());
        if entry.kind == kind::ZEROS {
            // Pages that nobody touched stay untouched: a fault for each would cost more than all the rest.
            let hole = length as u64 * PAGE as u64;
            if !memory::empty(memory, page.address(), hole) {
                return Err(BadPages::Page(page.get()));
            }
            count += u64::from(entry.length.get());
            bytes = rest;
            continue;
        }
        let (content, rest) = rest.split_at_checked(length).ok_or(BadPages::Cut)?;
        put(entry.kind, page, content, memory, bases.as_deref_mut())?;
        count += 1;
        bytes = rest;
    }
    Ok(count)
}

fn put(
    kind: u8,
    page: Page,
    content: &[u8],
    memory: &GuestRam,
    bases: Option<&mut Bases>,
) -> Result<(), BadPages> {
    let wrong = BadPages::Length(page.get());
    let unpack = || {
        let mut bytes = [0; PAGE];
        match lz4_flex::block::decompress_into(content, &mut bytes) {
            Ok(PAGE) => Ok(bytes),
            _ => Err(wrong),
        }
    };
    let mut unpacked;
    let bytes = match kind {
        kind::RAW => content.try_into().map_err(|_| wrong)?,
        kind::LZ4 => {
            unpacked = unpack()?;
            &unpacked
        }
        kind::SAME => {
            let holder = U32::read_from_bytes(content).map_err(|_| wrong)?;
            let holder = Page::new(holder.get().into());
            return write(&content_of(holder, memory)?, page, memory);
        }
        kind::CHANGE => {
            unpacked = unpack()?;
            match &bases {
                Some(bases) if bases.exchange(page, &mut unpacked) => &unpacked,
                _ => return Err(BadPages::Base(page.get())),
            }
        }
        other => return Err(BadPages::Kind(other)),
    };
    write(bytes, page, memory)?;
    if let Some(bases) = bases {
        bases.note(page, bytes);
    }
    Ok(())
}

fn content_of(page: Page, memory: &GuestRam) -> Result<[u8; PAGE], BadPages> {
    let mut bytes = [0; PAGE];
    let read = memory.read_slice(&mut bytes, page.address());
    read.map_err(|_| BadPages::Page(page.get()))?;
    Ok(bytes)
}

/// Writes a page to the file that the memory is made of: through the mapping, a page that nobody touched yet would cost a
/// fault, and zeros before its bytes.
fn write(bytes: &[u8; PAGE], page: Page, memory: &GuestRam) -> Result<(), BadPages> {
    let (at, unknown) = (page.address(), BadPages::Page(page.get()));
    let place = memory::place_of(memory, at).ok_or(unknown)?;
    let written = place.file.write_all_at(bytes, place.at);
    written.map_err(|_| BadPages::NoMemory(page.get()))?;
    // What is written through the mapping is noted by itself.
    let (region, within) = memory.to_region_addr(at).ok_or(unknown)?;
    let within = usize::try_from(within.0).map_err(|_| unknown)?;
    region.bitmap().mark_dirty(within, bytes.len());
    Ok(())
}

#[cfg(test)]
mod tests;
