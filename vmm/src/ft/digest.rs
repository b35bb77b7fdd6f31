//! What a machine comes to in a window, in few bytes: so a backup finds out that it is not the primary's machine any more.
//!
//! The recorder makes a digest now and then, as a record; the replayer of a backup checks it where that record is. In it: the
//! general registers, the pages that were written since the last one, and a stretch of all pages in turn, so that no bit
//! stays wrong for ever. Nothing here heals anything.

use crate::machine::Machine;
use crate::memory::GuestRam;
use crate::state::dirty::Page;
use crate::vcpu::VcpuError;
use std::fmt;
use std::os::unix::fs::FileExt;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Written pages that one digest has at most: bounds how long the guest stands still for it.
const WRITTEN_MAX: usize = 2048;
/// Pages of the stretch that each digest goes on by: 8 MiB.
const STRETCH: u64 = 2048;

/// The registers, which every digest has, and alone if it is a short one.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Short {
    registers: U64,
}

/// A stretch of pages and the hash of all of them; written pages follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Stretch {
    first: U32,
    count: U32,
    hash: U64,
}

/// A written page.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Written {
    page: U32,
    hash: U32,
}

/// How a machine differs from the one that a digest is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The general registers.
    Registers,
    /// A page.
    Page(Page),
    /// Some page among these.
    Among(Page, u64),
    /// The digest cannot be of this machine at all.
    Foreign,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registers => f.write_str("the registers differ"),
            Self::Page(page) => write!(f, "the page at {:#x} differs", page.address().0),
            Self::Among(first, count) => {
                write!(f, "one of {count} pages from {:#x} on differs", first.address().0)
            }
            Self::Foreign => f.write_str("the digest is of another machine"),
        }
    }
}

/// Makes digests, and remembers which stretch comes next.
#[derive(Clone, Copy, Debug, Default)]
pub struct Digester {
    next: u64,
}

impl Digester {
    /// The registers alone.
    ///
    /// # Errors
    /// When KVM does not tell them.
    pub fn short(machine: &Machine) -> Result<Vec<u8>, VcpuError> {
        let registers = machine.register_hash()?.into();
        Ok(Short { registers }.as_bytes().to_vec())
    }

    /// The registers, the `written` pages and the next stretch.
    ///
    /// # Errors
    /// When KVM does not tell the registers.
    pub fn full(&mut self, machine: &Machine, written: &[Page]) -> Result<Vec<u8>, VcpuError> {
        let memory = machine.memory();
        let mut bytes = Self::short(machine)?;
        let pages = page_count(memory);
        let first = if self.next < pages { self.next } else { 0 };
        let count = STRETCH.min(pages - first);
        self.next = first + count;
        let stretch = Stretch {
            first: number(first),
            count: number(count),
            hash: stretch_hash(memory, first, count).into(),
        };
        bytes.extend(stretch.as_bytes());
        for page in written.iter().take(WRITTEN_MAX) {
            let hash = short_hash(memory, *page);
            let page = number(page.get());
            bytes.extend(Written { page, hash }.as_bytes());
        }
        Ok(bytes)
    }
}

/// Compares a machine with the digest of another one; gives the first difference.
///
/// # Errors
/// When KVM does not tell the registers.
pub fn check(machine: &Machine, digest: &[u8]) -> Result<Option<Difference>, VcpuError> {
    let Ok((short, rest)) = Short::read_from_prefix(digest) else {
        return Ok(Some(Difference::Foreign));
    };
    if short.registers.get() != machine.register_hash()? {
        return Ok(Some(Difference::Registers));
    }
    if rest.is_empty() {
        return Ok(None);
    }
    Ok(memory_difference(machine.memory(), rest))
}

fn memory_difference(memory: &GuestRam, digest: &[u8]) -> Option<Difference> {
    let Ok((stretch, written)) = Stretch::read_from_prefix(digest) else {
        return Some(Difference::Foreign);
    };
    let pages = page_count(memory);
    let (first, count) = (u64::from(stretch.first.get()), u64::from(stretch.count.get()));
    let Ok(written) = <[Written]>::ref_from_bytes(written) else {
        return Some(Difference::Foreign);
    };
    let is_inside = written
        .iter()
        .all(|written| u64::from(written.page.get()) < pages);
    if !is_inside || count > STRETCH || first + count > pages {
        return Some(Difference::Foreign);
    }
    let differs = |written: &&Written| {
        let page = Page::new(written.page.get().into());
        short_hash(memory, page) != written.hash
    };
    if let Some(written) = written.iter().find(differs) {
        return Some(Difference::Page(Page::new(written.page.get().into())));
    }
    (stretch_hash(memory, first, count) != stretch.hash.get())
        .then_some(Difference::Among(Page::new(first), count))
}

/// A hash for each page, from page 0 on.
#[must_use]
pub fn census(memory: &GuestRam) -> Vec<u64> {
    (0..page_count(memory))
        .map(|page| hash(memory, Page::new(page)))
        .collect()
}

/// The pages that are not what `hashes` says of them; those that it does not name are.
#[must_use]
pub fn differing(memory: &GuestRam, hashes: &[u64]) -> Vec<Page> {
    let pages = (0..page_count(memory)).map(Page::new);
    let theirs = hashes.iter().map(Some).chain(std::iter::repeat(None));
    let differing = pages
        .zip(theirs)
        .filter(|(page, theirs)| *theirs != Some(&hash(memory, *page)));
    differing.map(|(page, _)| page).collect()
}

fn page_count(memory: &GuestRam) -> u64 {
    let ends = memory.iter().map(|region| region.start_addr().0 + region.len());
    ends.max().unwrap_or(0) / Page::BYTES as u64
}

fn number(page: u64) -> U32 {
    U32::new(u32::try_from(page).expect("guest memory is 3 GiB at most"))
}

fn short_hash(memory: &GuestRam, page: Page) -> U32 {
    U32::new((hash(memory, page) & u64::from(u32::MAX)) as u32)
}

fn stretch_hash(memory: &GuestRam, first: u64, count: u64) -> u64 {
    let mut hasher = Xxh3::new();
    for page in first..first + count {
        hasher.update(&hash(memory, Page::new(page)).to_le_bytes());
    }
    hasher.digest()
}

/// The page is read from its file: where nobody ever touched it, reading it through the mapping would give it memory.
fn hash(memory: &GuestRam, page: Page) -> u64 {
    let mut bytes = [0; Page::BYTES];
    let region = memory
        .find_region(page.address())
        .expect("only pages of this memory are asked for");
    let place = region.file_offset().expect("guest memory is made of files");
    let at = place.start() + page.address().0 - region.start_addr().0;
    place
        .file()
        .read_exact_at(&mut bytes, at)
        .expect("the file is as long as the memory, and sealed");
    xxh3_64(&bytes)
}
