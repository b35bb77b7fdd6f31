//! What a machine comes to in a window, in few bytes: so a backup finds out that it is not the primary's machine any more.
//!
//! The recorder makes a digest now and then, as a record; the replayer of a backup checks it where that record is. In it: the
//! general registers, the pages that were written since the last one, and a stretch of all pages in turn, so that no bit
//! stays wrong for ever. Nothing here heals anything.
//!
//! A hash of all written pages finds a difference; a byte for each of them says, nearly always, where it is. So a guest that
//! idles costs the log little: about three bytes a page.

use crate::machine::Machine;
use crate::memory::{self, GuestRam};
use crate::state::dirty::Page;
use crate::vcpu::VcpuError;
use std::fmt;
use std::os::unix::fs::FileExt;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use xxhash_rust::xxh3::xxh3_64;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Written pages that one digest has at most: bounds how long the guest stands still for it (measured 2026-11-26 on a busy
/// software KVM: some microseconds a page).
const WRITTEN_MAX: usize = 1024;
/// Pages of the stretch that each digest goes on by: 4 MiB.
const STRETCH: u64 = 1024;
/// So many pages are read at once: a system call costs more than a page.
const READ_PAGES: u64 = 16;

/// The registers, which every digest has, and alone if it is a short one.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Short {
    registers: U64,
}

/// Hashes of a stretch of pages and of the written ones. Which those are follows: for each the distance from the one before as
/// a varint (seven bits a byte, lowest first), and a byte of its own hash.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Full {
    first: U32,
    count: U32,
    stretch: U64,
    written: U64,
}

/// How a machine differs from the one that a digest is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The general registers.
    Registers,
    /// A page.
    Page(Page),
    /// Some page among those that were written.
    Written(usize),
    /// Some page of these.
    Among(Page, u64),
    /// The digest cannot be of this machine at all.
    Foreign,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registers => f.write_str("the registers differ"),
            Self::Page(page) => write!(f, "the page at {:#x} differs", page.address().0),
            Self::Written(count) => write!(f, "one of {count} written pages differs"),
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

    /// The registers, the `written` pages (in ascending order) and the next stretch.
    ///
    /// # Errors
    /// When KVM does not tell the registers.
    pub fn full(&mut self, machine: &Machine, written: &[Page]) -> Result<Vec<u8>, VcpuError> {
        let mut bytes = Self::short(machine)?;
        self.add_memory(&mut bytes, machine.memory(), written);
        Ok(bytes)
    }

    fn add_memory(&mut self, bytes: &mut Vec<u8>, memory: &GuestRam, written: &[Page]) {
        let pages = page_count(memory);
        let first = if self.next < pages { self.next } else { 0 };
        let count = STRETCH.min(pages - first);
        self.next = first + count;
        let written = &written[..written.len().min(WRITTEN_MAX)];
        let hashes = hashes_of(memory, written);
        let mut list = Vec::new();
        let mut before = 0;
        for (page, hash) in written.iter().zip(&hashes) {
            put_varint(&mut list, page.get() - before);
            list.push(low_byte(*hash));
            before = page.get();
        }
        let full = Full {
            first: number(first),
            count: number(count),
            stretch: combined(&hashes_from(memory, first, count)).into(),
            written: combined(&hashes).into(),
        };
        bytes.extend(full.as_bytes());
        bytes.extend(list);
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
    let Ok((full, list)) = Full::read_from_prefix(digest) else {
        return Some(Difference::Foreign);
    };
    let pages = page_count(memory);
    let (first, count) = (u64::from(full.first.get()), u64::from(full.count.get()));
    let Some(written) = read_list(list, pages) else {
        return Some(Difference::Foreign);
    };
    if count > STRETCH || first + count > pages {
        return Some(Difference::Foreign);
    }
    let (written, bytes): (Vec<_>, Vec<_>) = written.into_iter().unzip();
    let hashes = hashes_of(memory, &written);
    let pairs = hashes.iter().zip(bytes);
    if let Some((page, _)) = written
        .iter()
        .zip(pairs)
        .find(|(_, (hash, byte))| low_byte(**hash) != *byte)
    {
        return Some(Difference::Page(*page));
    }
    if combined(&hashes) != full.written.get() {
        return Some(Difference::Written(written.len()));
    }
    (combined(&hashes_from(memory, first, count)) != full.stretch.get())
        .then_some(Difference::Among(Page::new(first), count))
}

/// Which pages were written, with a byte of the hash of each; `None` if these cannot be pages of this memory.
fn read_list(mut list: &[u8], pages: u64) -> Option<Vec<(Page, u8)>> {
    let mut written = Vec::new();
    let mut page = 0_u64;
    while !list.is_empty() {
        page += take_varint(&mut list)?;
        let byte = *list.split_off_first()?;
        if page >= pages || written.len() == WRITTEN_MAX {
            return None;
        }
        written.push((Page::new(page), byte));
    }
    Some(written)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(low_byte(value) | 0x80);
        value >>= 7;
    }
    out.push(low_byte(value));
}

/// A varint of at most 28 bits: no page of a guest has a greater number.
fn take_varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in [0, 7, 14, 21] {
        let byte = *from.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// A hash for each page, from page 0 on.
#[must_use]
pub fn census(memory: &GuestRam) -> Vec<u64> {
    hashes_from(memory, 0, page_count(memory))
}

/// The pages that are not what `hashes` says of them; those that it does not name are.
#[must_use]
pub fn differing(memory: &GuestRam, hashes: &[u64]) -> Vec<Page> {
    let theirs = hashes.iter().map(Some).chain(std::iter::repeat(None));
    let ours = census(memory);
    let pages = (0..).map(Page::new).zip(ours.iter().zip(theirs));
    let differing = pages.filter(|(_, (ours, theirs))| *theirs != Some(*ours));
    differing.map(|(page, _)| page).collect()
}

fn page_count(memory: &GuestRam) -> u64 {
    let ends = memory.iter().map(|region| region.start_addr().0 + region.len());
    ends.max().unwrap_or(0) / Page::BYTES as u64
}

fn number(page: u64) -> U32 {
    U32::new(u32::try_from(page).expect("guest memory is 3 GiB at most"))
}

fn low_byte(number: u64) -> u8 {
    number.to_le_bytes()[0]
}

fn combined(hashes: &[u64]) -> u64 {
    xxh3_64(hashes.as_bytes())
}

/// A hash for each of these pages, which are in ascending order.
fn hashes_of(memory: &GuestRam, pages: &[Page]) -> Vec<u64> {
    let runs = pages.chunk_by(|one, other| one.get() + 1 == other.get());
    runs.flat_map(|run| hashes_from(memory, run[0].get(), run.len() as u64))
        .collect()
}

/// A hash for each of `count` pages. They are read from their file: where nobody ever touched them, reading them through the
/// mapping would give them memory.
fn hashes_from(memory: &GuestRam, first: u64, count: u64) -> Vec<u64> {
    let mut hashes = Vec::new();
    let mut bytes = Vec::new();
    let (mut page, end) = (first, first + count);
    while page < end {
        let place = memory::place_of(memory, Page::new(page).address())
            .expect("only pages of this memory are asked for, and it has no holes");
        let pages = READ_PAGES.min(end - page).min(place.left / Page::BYTES as u64);
        bytes.resize(pages as usize * Page::BYTES, 0);
        place
            .file
            .read_exact_at(&mut bytes, place.at)
            .expect("the file is as long as the memory, and sealed");
        hashes.extend(bytes.chunks(Page::BYTES).map(xxh3_64));
        page += pages;
    }
    hashes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use vm_memory::Bytes;

    const MIB: u64 = 8;
    const PAGES: u64 = MIB << 8;

    fn machine() -> GuestRam {
        memory::create(MIB).unwrap()
    }

    fn poke(memory: &GuestRam, page: u64) {
        memory.write_obj(7_u8, Page::new(page).address()).unwrap();
    }

    fn digest(memory: &GuestRam, written: &[u64]) -> Vec<u8> {
        let written: Vec<_> = written.iter().map(|page| Page::new(*page)).collect();
        let mut bytes = Vec::new();
        Digester::default().add_memory(&mut bytes, memory, &written);
        bytes
    }

    #[test]
    fn equal_memories_come_to_equal_digests() {
        let (ours, theirs) = (machine(), machine());
        poke(&ours, 300);
        poke(&theirs, 300);
        assert_eq!(
            memory_difference(&ours, &digest(&theirs, &[0, 127, 300, 1023])),
            None
        );
    }

    #[test]
    fn a_written_page_that_differs_is_named() {
        let (ours, theirs) = (machine(), machine());
        poke(&theirs, 300);
        let found = memory_difference(&ours, &digest(&theirs, &[2, 300, 301]));
        assert_eq!(found, Some(Difference::Page(Page::new(300))));
    }

    #[test]
    fn a_page_that_nobody_wrote_is_found_by_its_stretch() {
        let (ours, theirs) = (machine(), machine());
        poke(&ours, 300);
        let found = memory_difference(&ours, &digest(&theirs, &[2]));
        assert_eq!(found, Some(Difference::Among(Page::new(0), STRETCH)));
    }

    #[test]
    fn the_stretches_come_to_all_pages_in_turn() {
        let memory = machine();
        let mut digester = Digester { next: PAGES };
        digester.add_memory(&mut Vec::new(), &memory, &[]);
        assert_eq!(digester.next, STRETCH);
    }

    #[test]
    fn what_cannot_be_of_this_memory_is_foreign() {
        let memory = machine();
        let foreign = Some(Difference::Foreign);
        assert_eq!(memory_difference(&memory, &[1, 2, 3]), foreign);
        let mut beyond = digest(&memory, &[]);
        beyond.extend([0xff, 0xff, 0xff, 0x7f, 0]);
        assert_eq!(memory_difference(&memory, &beyond), foreign);
        beyond.truncate(beyond.len() - 2);
        assert_eq!(memory_difference(&memory, &beyond), foreign);
    }

    #[test]
    fn a_census_tells_which_pages_differ() {
        let (ours, theirs) = (machine(), machine());
        poke(&ours, 5);
        poke(&theirs, 1000);
        let pages = [5, 1000].map(Page::new);
        assert_eq!(differing(&ours, &census(&theirs)), pages);
        // Pages that a census does not name differ.
        assert_eq!(
            differing(&ours, &census(&ours)[..2046]),
            [2046, 2047].map(Page::new)
        );
    }
}
