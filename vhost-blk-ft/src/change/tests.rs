//! Changes of real files, begun, stopped and begun again.

use std::io::Write;

use tempfile::NamedTempFile;

use super::*;
use crate::disk::{DiskOptions, Sharing};

const BYTES: usize = 4 << 20;

fn disk() -> (NamedTempFile, Disk) {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&vec![7; BYTES]).unwrap();
    let options = DiskOptions {
        path: file.path().to_owned(),
        read_only: false,
        sharing: Sharing::Shared,
        serial: String::new(),
    };
    let disk = Disk::open(&options).unwrap();
    (file, disk)
}

fn run(change: &mut Change, disk: &mut Disk) {
    while change.step(disk).unwrap() == Progress::More {}
}

#[test]
fn a_write_lands_where_it_belongs() {
    let (file, mut disk) = disk();
    run(&mut Change::write(512, Payload::zeros(1024)), &mut disk);
    let content = std::fs::read(file.path()).unwrap();
    assert_eq!(
        (content[511], content[512], content[1535], content[1536]),
        (7, 0, 0, 7)
    );
}

#[test]
fn zeros_that_the_storage_cannot_make_are_written_out_to_the_last_byte() {
    let (file, mut disk) = disk();
    let mut left = vec![Extent {
        at: 512,
        bytes: (2 << 20) + 512,
    }];
    let mut by_hand = Some(Payload::zeros(ZERO_STEP));
    let mut steps = 0;
    while !left.is_empty() {
        zero_some(&mut disk, &mut left, false, &mut by_hand).unwrap();
        steps += 1;
    }
    let content = std::fs::read(file.path()).unwrap();
    let end = 1024 + (2 << 20);
    assert_eq!(steps, 3);
    assert!(content[512..end].iter().all(|byte| *byte == 0));
    assert_eq!((content[511], content[end]), (7, 7));
}

#[test]
fn nothing_to_discard_is_done_at_once() {
    let (_file, mut disk) = disk();
    let mut nothing = Change::discard(vec![Extent { at: 0, bytes: 0 }]);
    assert_eq!(nothing.step(&mut disk).unwrap(), Progress::Done);
}

#[test]
fn ranges_are_discarded_in_the_order_they_were_named() {
    let Change::Discard { left } =
        Change::discard(vec![Extent { at: 0, bytes: 512 }, Extent { at: 512, bytes: 512 }])
    else {
        panic!("a discard is a discard")
    };
    assert_eq!(left.last(), Some(&Extent { at: 0, bytes: 512 }));
}
