//! Copies between two small memories, as encoder and `apply` make them together.

use super::*;
use crate::memory;
use proptest::prelude::*;

fn encoded(encoder: &mut PageEncoder, memory: &GuestRam, pages: impl Iterator<Item = Page>) -> BytesMut {
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

proptest! {
    #[test]
    fn no_bytes_however_wild_reach_outside_memory_or_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let memory = memory::create(1).unwrap();
        let _ = apply(&bytes, &memory);
    }
}
