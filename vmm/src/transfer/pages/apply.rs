//! The side that takes pages in: bytes from another host, of which nothing is believed. The first that is no page of this
//! memory ends it.

use super::{BadPages, Bases, Entry, PAGE, kind};
use crate::memory::{self, GuestRam};
use crate::state::dirty::Page;
use rustix::io::{Errno, pwritev};
use std::io::IoSlice;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

/// So many pages are written at once at most: all of a piece that does not compress.
const RUN_MAX: usize = 256;

/// Puts encoded pages in their places, and says how many there were.
///
/// # Errors
/// When they are no pages of this memory.
pub fn apply(bytes: &[u8], memory: &GuestRam) -> Result<u64, BadPages> {
    Taking::new(memory, None).take(bytes)
}

/// The same, for a side that holds `bases`, too.
///
/// # Errors
/// When they are no pages of this memory, or changes of pages that are not held.
pub fn apply_changes(bases: &mut Bases, bytes: &[u8], memory: &GuestRam) -> Result<u64, BadPages> {
    Taking::new(memory, Some(bases)).take(bytes)
}

/// Pages that are being taken in.
struct Taking<'a> {
    memory: &'a GuestRam,
    bases: Option<&'a mut Bases>,
    run: Run<'a>,
}

impl<'a> Taking<'a> {
    fn new(memory: &'a GuestRam, bases: Option<&'a mut Bases>) -> Self {
        Self {
            memory,
            bases,
            run: Run::default(),
        }
    }

    fn take(mut self, mut bytes: &'a [u8]) -> Result<u64, BadPages> {
        let mut count = 0;
        while !bytes.is_empty() {
            let (entry, rest) = Entry::read_from_prefix(bytes).map_err(|_| BadPages::Cut)?;
            let page = Page::new(entry.page.get().into());
            let length = entry.length.get();
            let (pages, taken) = match entry.kind {
                kind::ZEROS => (u64::from(length), 0),
                _ => (1, usize::from(length)),
            };
            let (content, rest) = rest.split_at_checked(taken).ok_or(BadPages::Cut)?;
            match entry.kind {
                kind::RAW => self.put_raw(page, content)?,
                kind::ZEROS => self.put_zeros(page, pages)?,
                kind => self.put(kind, page, content)?,
            }
            count += pages;
            bytes = rest;
        }
        self.run.write(self.memory)?;
        Ok(count)
    }

    fn put_raw(&mut self, page: Page, content: &'a [u8]) -> Result<(), BadPages> {
        let bytes = content.try_into().map_err(|_| BadPages::Length(page.get()))?;
        if !self.run.goes_on_with(page) {
            self.run.write(self.memory)?;
        }
        self.run.add(page, bytes, self.memory)?;
        self.note(page, bytes);
        Ok(())
    }

    /// Pages that nobody touched stay untouched: a fault for each would cost more than all the rest.
    fn put_zeros(&mut self, page: Page, pages: u64) -> Result<(), BadPages> {
        self.run.write(self.memory)?;
        match memory::empty(self.memory, page.address(), pages * PAGE as u64) {
            true => Ok(()),
            false => Err(BadPages::Page(page.get())),
        }
    }

    fn put(&mut self, kind: u8, page: Page, content: &[u8]) -> Result<(), BadPages> {
        self.run.write(self.memory)?;
        let bytes = match kind {
            kind::LZ4 => unpack(page, content)?,
            kind::SAME => {
                let holder = U32::read_from_bytes(content).map_err(|_| BadPages::Length(page.get()))?;
                content_of(Page::new(holder.get().into()), self.memory)?
            }
            kind::CHANGE => {
                let mut bytes = unpack(page, content)?;
                match &self.bases {
                    Some(bases) if bases.exchange(page, &mut bytes) => bytes,
                    _ => return Err(BadPages::Base(page.get())),
                }
            }
            other => return Err(BadPages::Kind(other)),
        };
        write(page, &mut [IoSlice::new(&bytes)], self.memory)?;
        if kind != kind::SAME {
            self.note(page, &bytes);
        }
        Ok(())
    }

    fn note(&mut self, page: Page, bytes: &[u8; PAGE]) {
        if let Some(bases) = &mut self.bases {
            bases.note(page, bytes);
        }
    }
}

fn unpack(page: Page, content: &[u8]) -> Result<[u8; PAGE], BadPages> {
    let mut bytes = [0; PAGE];
    match lz4_flex::block::decompress_into(content, &mut bytes) {
        Ok(PAGE) => Ok(bytes),
        _ => Err(BadPages::Length(page.get())),
    }
}

fn content_of(page: Page, memory: &GuestRam) -> Result<[u8; PAGE], BadPages> {
    let mut bytes = [0; PAGE];
    let read = memory.read_slice(&mut bytes, page.address());
    read.map_err(|_| BadPages::Page(page.get()))?;
    Ok(bytes)
}

/// Pages that follow one another, to be written together.
#[derive(Default)]
struct Run<'a> {
    first: u64,
    pages: Vec<IoSlice<'a>>,
}

impl<'a> Run<'a> {
    fn goes_on_with(&self, page: Page) -> bool {
        page.get() == self.first + self.pages.len() as u64 && self.pages.len() < RUN_MAX
    }

    /// One more, which follows the last one if there is one.
    fn add(&mut self, page: Page, bytes: &'a [u8; PAGE], memory: &GuestRam) -> Result<(), BadPages> {
        memory::place_of(memory, page.address()).ok_or(BadPages::Page(page.get()))?;
        if self.pages.is_empty() {
            self.first = page.get();
        }
        self.pages.push(IoSlice::new(bytes));
        Ok(())
    }

    /// Writes what there is, and begins anew.
    fn write(&mut self, memory: &GuestRam) -> Result<(), BadPages> {
        if !self.pages.is_empty() {
            write(Page::new(self.first), &mut self.pages, memory)?;
            self.pages.clear();
        }
        Ok(())
    }
}

/// Writes pages from `first` on to the file that the memory is made of: through the mapping, a page that nobody touched yet
/// would cost a fault, and zeros before its bytes.
fn write(first: Page, mut pages: &mut [IoSlice<'_>], memory: &GuestRam) -> Result<(), BadPages> {
    let (start, bytes, unknown) = (first.address(), pages.len() * PAGE, BadPages::Page(first.get()));
    let place = memory::place_of(memory, start).ok_or(unknown)?;
    let mut at = place.at;
    while !pages.is_empty() {
        match pwritev(place.file, pages, at) {
            Err(Errno::INTR) => {}
            Ok(0) | Err(_) => return Err(BadPages::NoMemory(first.get())),
            Ok(written) => {
                at += written as u64;
                IoSlice::advance_slices(&mut pages, written);
            }
        }
    }
    // What is written through the mapping is noted by itself.
    let (region, within) = memory.to_region_addr(start).ok_or(unknown)?;
    let within = usize::try_from(within.0).map_err(|_| unknown)?;
    region.bitmap().mark_dirty(within, bytes);
    Ok(())
}
