//! The side that sends pages: which kind each of them is sent as. It remembers what the other side holds, and cuts nothing
//! into pieces: that is the caller's.

use super::{Bases, Entry, PAGE, all, content_of, index, kind, number};
use crate::memory::GuestRam;
use crate::state::dirty::Page;
use bytes::{BufMut, BytesMut};
use xxhash_rust::xxh3::xxh3_128;
use zerocopy::IntoBytes;

/// Compressed bytes are sent only if they are fewer than this: below an eighth of gain the work is not worth it.
const PAYS: usize = PAGE - PAGE / 8;

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
