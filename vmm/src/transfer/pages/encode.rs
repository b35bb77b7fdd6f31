//! The side that sends pages: which kind each of them is sent as. It remembers what the other side holds, and cuts nothing
//! into pieces: that is the caller's.

use super::{Bases, Entry, PAGE, all, index, kind, number};
use crate::memory::GuestRam;
use crate::state::dirty::Page;
use bytes::Bytes;
use vm_memory::Bytes as _;
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

impl PageEncoder {
    /// Appends what the other side needs to have `page` as it is in `memory` now. The guest may be writing to it: what
    /// is torn by that is noted as written, and is sent again.
    ///
    /// # Panics
    /// When the memory does not have the page.
    pub fn encode(&mut self, memory: &GuestRam, page: Page, out: &mut Pages) {
        let staged = out.stage(memory, page);
        if !self.encode_known(memory, page, staged, out) {
            self.add_bytes(page, staged, out);
        }
    }

    /// The same, for a side that holds `bases`, too.
    ///
    /// # Panics
    /// When the memory does not have the page.
    pub fn encode_change(&mut self, bases: &mut Bases, memory: &GuestRam, page: Page, out: &mut Pages) {
        let staged = out.stage(memory, page);
        if self.encode_known(memory, page, staged, out) {
            return;
        }
        let mut change = *out.staged();
        let packed = bases.exchange(page, &mut change).then(|| self.pack(&change));
        bases.note(page, out.staged());
        match packed.flatten() {
            Some(length) => {
                out.unstage(staged);
                out.add(page, kind::CHANGE, &self.scratch[..length]);
            }
            None => self.add_bytes(page, staged, out),
        }
    }

    /// The other side may no longer hold what was sent for these pages, all that were sent.
    pub fn forget(&mut self, pages: &[Page]) {
        for page in pages {
            self.sent[index(*page)] = NOTHING;
        }
    }

    /// Appends the page that is staged, if it is zeros or one that the other side has elsewhere. `false` if it is neither.
    fn encode_known(&mut self, memory: &GuestRam, page: Page, staged: Staged, out: &mut Pages) -> bool {
        if self.sent.is_empty() {
            let count = usize::try_from(all(memory).last().map_or(0, Page::get) + 1);
            let count = count.expect("guest memory is 3 GiB at most");
            self.sent = vec![NOTHING; count];
            self.holders = vec![Page::new(0); count.next_power_of_two()];
        }
        if *out.staged() == [0; PAGE] {
            self.sent[index(page)] = NOTHING;
            out.unstage(staged);
            out.add_zero(page);
            return true;
        }
        let content = xxh3_128(out.staged());
        self.sent[index(page)] = content;
        let place = content as usize & (self.holders.len() - 1);
        let holder = std::mem::replace(&mut self.holders[place], page);
        // It may hold something else by now.
        let is_there = holder != page && content != NOTHING && self.sent[index(holder)] == content;
        if is_there {
            self.holders[place] = holder;
            out.unstage(staged);
            out.add(page, kind::SAME, number(holder).as_bytes());
        }
        is_there
    }

    /// Appends the page that is staged.
    fn add_bytes(&mut self, page: Page, staged: Staged, out: &mut Pages) {
        let tries = self.failed < FAILED_MAX || page.get().is_multiple_of(u64::from(FAILED_MAX));
        if tries {
            if let Some(length) = self.pack(out.staged()) {
                self.failed = 0;
                out.unstage(staged);
                return out.add(page, kind::LZ4, &self.scratch[..length]);
            }
            self.failed = self.failed.saturating_add(1);
        }
        out.keep(page, staged);
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
    bytes: Vec<u8>,
    /// A run of zeros at the end that may still grow: its first page, and how many.
    zeros: Option<(Page, u16)>,
}

/// Where a page begins that was read to where its bytes are to be if it is sent as it is: most pages are copied once so.
#[derive(Clone, Copy, Debug)]
struct Staged(usize);

impl Pages {
    /// Room for about so many bytes.
    #[must_use]
    pub fn with_room(bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes + PAGE + 2 * size_of::<Entry>()),
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
    pub fn into_bytes(mut self) -> Bytes {
        self.end_zeros();
        self.bytes.into()
    }

    /// Reads a page, behind room for what stands before its bytes.
    fn stage(&mut self, memory: &GuestRam, page: Page) -> Staged {
        let begin = self.bytes.len();
        let entries = if self.zeros.is_some() { 2 } else { 1 };
        self.bytes.resize(begin + entries * size_of::<Entry>(), 0);
        memory
            .write_all_volatile_to(page.address(), &mut self.bytes, PAGE)
            .expect("only pages of this memory are sent");
        Staged(begin)
    }

    /// The page that is staged.
    fn staged(&self) -> &[u8; PAGE] {
        self.bytes.last_chunk().expect("a page is staged")
    }

    /// It is not sent as it is.
    fn unstage(&mut self, Staged(begin): Staged) {
        self.bytes.truncate(begin);
    }

    /// It is.
    fn keep(&mut self, page: Page, Staged(begin): Staged) {
        let zeros = self.zeros.take();
        let zeros = zeros.map(|(first, count)| Entry::new(first, kind::ZEROS, count));
        let entries = zeros
            .into_iter()
            .chain([Entry::new(page, kind::RAW, PAGE as u16)]);
        let room = self.bytes[begin..].chunks_exact_mut(size_of::<Entry>());
        for (entry, room) in entries.zip(room) {
            room.copy_from_slice(entry.as_bytes());
        }
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
            let entry = Entry::new(first, kind::ZEROS, count);
            self.bytes.extend_from_slice(entry.as_bytes());
        }
    }

    fn add(&mut self, page: Page, kind: u8, bytes: &[u8]) {
        self.end_zeros();
        let length = u16::try_from(bytes.len()).expect("a page is 4 KiB");
        self.bytes
            .extend_from_slice(Entry::new(page, kind, length).as_bytes());
        self.bytes.extend_from_slice(bytes);
    }
}
