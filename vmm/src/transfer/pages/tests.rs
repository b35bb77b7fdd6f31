//! Copies between two small memories, as encoder and `apply` make them together.

use super::*;
use crate::memory;
use proptest::prelude::*;
use vm_memory::Bytes;
use xxhash_rust::xxh3::xxh3_128;

fn encoded(encoder: &mut PageEncoder, memory: &GuestRam, pages: impl Iterator<Item = Page>) -> bytes::Bytes {
    let mut out = Pages::default();
    pages.for_each(|page| encoder.encode(memory, page, &mut out));
    out.into_bytes()
}

fn fill(memory: &GuestRam, page: u64, byte: impl Fn(usize) -> u8) {
    let bytes: Vec<u8> = (0..PAGE).map(byte).collect();
    memory.write_slice(&bytes, Page::new(page).address()).unwrap();
}

fn content(memory: &GuestRam, page: u64) -> [u8; PAGE] {
    let mut bytes = [0; PAGE];
    memory.read_slice(&mut bytes, Page::new(page).address()).unwrap();
    bytes
}

fn noise(seed: u64) -> impl Fn(usize) -> u8 {
    move |at| (xxh3_128(&[seed, at as u64].map(u64::to_le_bytes).concat()) & 0xff) as u8
}

#[test]
fn a_memory_that_is_copied_is_equal_and_costs_less_than_its_bytes() {
    let [from, to] = [0; 2].map(|_| memory::create(1).unwrap());
    fill(&from, 3, |at| (at / 64) as u8);
    fill(&from, 4, noise(1));
    fill(&from, 200, noise(1));
    fill(&to, 7, |_| 9);
    let bytes = encoded(&mut PageEncoder::default(), &from, all(&from));
    assert_eq!(apply(&bytes, &to), Ok(256));
    assert!((0..256).all(|page| content(&from, page) == content(&to, page)));
    assert!(bytes.len() < PAGE + PAGE / 4, "{} bytes", bytes.len());
}

#[test]
fn a_page_is_never_taken_for_what_it_held_before() {
    let [from, to] = [0; 2].map(|_| memory::create(1).unwrap());
    let mut encoder = PageEncoder::default();
    fill(&from, 1, noise(1));
    apply(&encoded(&mut encoder, &from, all(&from)), &to).unwrap();
    // What page 1 held goes to page 2, and page 1 gets something else: sent in the other order.
    fill(&from, 2, noise(1));
    fill(&from, 1, noise(2));
    let bytes = encoded(&mut encoder, &from, [1, 2].map(Page::new).into_iter());
    apply(&bytes, &to).unwrap();
    assert!(
        [1, 2]
            .iter()
            .all(|page| content(&from, *page) == content(&to, *page))
    );
}

#[test]
fn pages_that_follow_one_another_and_others_between_them_all_find_their_places() {
    let [from, to] = [0; 2].map(|_| memory::create(2).unwrap());
    // Noise does not compress; a run of it is interrupted by zeros, by what compresses, and by its own length.
    for page in (0..512).filter(|page| page % 100 != 7) {
        match page % 90 {
            5 => fill(&from, page, |_| 3),
            _ => fill(&from, page, noise(page)),
        }
    }
    fill(&to, 107, noise(1));
    let bytes = encoded(&mut PageEncoder::default(), &from, all(&from));
    assert_eq!(apply(&bytes, &to), Ok(512));
    assert!((0..512).all(|page| content(&from, page) == content(&to, page)));
}

#[test]
fn a_page_that_became_zero_is_zero_there() {
    let [from, to] = [0; 2].map(|_| memory::create(1).unwrap());
    let mut encoder = PageEncoder::default();
    fill(&from, 5, noise(5));
    apply(&encoded(&mut encoder, &from, all(&from)), &to).unwrap();
    fill(&from, 5, |_| 0);
    apply(&encoded(&mut encoder, &from, [Page::new(5)].into_iter()), &to).unwrap();
    assert_eq!(content(&to, 5), [0; PAGE]);
}

#[test]
fn a_page_outside_memory_is_refused() {
    let (from, to) = (memory::create(2).unwrap(), memory::create(1).unwrap());
    fill(&from, 300, noise(1));
    let bytes = encoded(&mut PageEncoder::default(), &from, [Page::new(300)].into_iter());
    assert_eq!(apply(&bytes, &to), Err(BadPages::Page(300)));
}

#[test]
fn a_piece_that_is_cut_off_is_refused() {
    let memory = memory::create(1).unwrap();
    fill(&memory, 1, noise(1));
    let bytes = encoded(&mut PageEncoder::default(), &memory, [Page::new(1)].into_iter());
    assert_eq!(apply(&bytes[..bytes.len() - 1], &memory), Err(BadPages::Cut));
    assert_eq!(apply(&bytes[..3], &memory), Err(BadPages::Cut));
}

/// Two sides of a log of deltas that hold few pages.
struct Sides {
    from: GuestRam,
    to: GuestRam,
    ours: Bases,
    theirs: Bases,
}

impl Sides {
    fn new() -> Self {
        let [from, to] = [0; 2].map(|_| memory::create(1).unwrap());
        let [ours, theirs] = [0; 2].map(|_| Bases::with_places(8));
        Self {
            from,
            to,
            ours,
            theirs,
        }
    }

    /// One delta; gives its length.
    fn send(&mut self, pages: &[u64]) -> usize {
        let (mut encoder, mut out) = (PageEncoder::default(), Pages::default());
        for page in pages.iter().copied().map(Page::new) {
            encoder.encode_change(&mut self.ours, &self.from, page, &mut out);
        }
        let bytes = out.into_bytes();
        apply_changes(&mut self.theirs, &bytes, &self.to).unwrap();
        bytes.len()
    }

    fn are_equal(&self, pages: &[u64]) -> bool {
        pages
            .iter()
            .all(|page| content(&self.from, *page) == content(&self.to, *page))
    }
}

#[test]
fn a_page_that_comes_again_costs_what_changed_in_it() {
    let mut sides = Sides::new();
    fill(&sides.from, 3, noise(3));
    assert!(sides.send(&[3]) > PAGE);
    sides.from.write_obj(7_u64, Page::new(3).address()).unwrap();
    let length = sides.send(&[3]);
    assert!(length < 64, "{length} bytes");
    assert!(sides.are_equal(&[3]));
}

#[test]
fn what_the_backup_did_to_a_page_meanwhile_does_not_matter() {
    let mut sides = Sides::new();
    fill(&sides.from, 3, noise(3));
    sides.send(&[3]);
    fill(&sides.to, 3, noise(4));
    sides.from.write_obj(7_u64, Page::new(3).address()).unwrap();
    sides.send(&[3]);
    assert!(sides.are_equal(&[3]));
}

#[test]
fn a_page_that_drove_another_out_is_not_taken_for_it() {
    let mut sides = Sides::new();
    fill(&sides.from, 3, noise(3));
    fill(&sides.from, 11, noise(11));
    sides.send(&[3, 11]);
    assert!(sides.send(&[3]) > PAGE);
    assert!(sides.are_equal(&[3, 11]));
}

#[test]
fn a_change_of_a_page_that_is_not_held_is_refused() {
    let mut sides = Sides::new();
    fill(&sides.from, 3, noise(3));
    sides.send(&[3]);
    let mut out = Pages::default();
    PageEncoder::default().encode_change(&mut sides.ours, &sides.from, Page::new(3), &mut out);
    let bytes = out.into_bytes();
    let nothing_held = apply_changes(&mut Bases::default(), &bytes, &sides.to);
    assert_eq!(nothing_held, Err(BadPages::Base(3)));
    assert_eq!(apply(&bytes, &sides.to), Err(BadPages::Base(3)));
}

proptest! {
    #[test]
    fn deltas_of_any_pages_leave_equal_memories(
        deltas in proptest::collection::vec(
            proptest::collection::btree_map(0_u64..24, (0_u64..3, 0_u64..PAGE as u64), 1..12),
            1..12,
        )
    ) {
        let mut sides = Sides::new();
        for written in deltas {
            for (page, (seed, at)) in &written {
                match seed {
                    0 => fill(&sides.from, *page, |_| 0),
                    seed => fill(&sides.from, *page, |place| noise(*seed)(place.min(*at as usize))),
                }
            }
            let pages: Vec<_> = written.keys().copied().collect();
            sides.send(&pages);
            prop_assert!(sides.are_equal(&pages));
        }
    }

    #[test]
    fn no_bytes_however_wild_reach_outside_memory_or_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let memory = memory::create(1).unwrap();
        let _ = apply(&bytes, &memory);
    }
}
