//! Copies between two images in a folder, as source and intake make them together; the disk process is played by hand.

use super::intake::{DiskIntake, DiskIntakeError};
use super::*;
use std::fs::File;
use std::os::unix::fs::FileExt;
use tempfile::TempDir;

const BYTES: u64 = 4 << 20;

struct Images {
    folder: TempDir,
}

impl Images {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        for name in ["from", "to"] {
            let file = File::create(folder.path().join(name)).unwrap();
            file.set_len(BYTES).unwrap();
        }
        Self { folder }
    }

    fn put(&self, name: &str, at: u64, bytes: &[u8]) {
        let path = self.folder.path().join(name);
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    fn content(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(name)).unwrap()
    }

    fn open(&self) -> (ImageFile, DiskIntake) {
        let [from, to] = ["from", "to"].map(|name| self.folder.path().join(name));
        (ImageFile::open(&from).unwrap(), DiskIntake::open(&to).unwrap())
    }
}

/// Sends everything, and says how many bytes that took.
fn send(source: &mut DiskSource, to: &mut DiskIntake) -> usize {
    assert_eq!(to.begin(&source.extent()).unwrap(), source.is_whole());
    for piece in source.announced() {
        to.announce(&piece).unwrap();
    }
    let mut sent = 0;
    while let Some(piece) = source.next_piece().unwrap() {
        sent += piece.len();
        to.apply(&piece).unwrap();
    }
    sent
}

fn source(images: &Images, is_whole: bool, blocks: &[u32]) -> DiskSource {
    let image = ImageFile::open(&images.folder.path().join("from")).unwrap();
    DiskSource::of(image, is_whole, blocks.iter().copied().map(Block::new).collect())
}

#[test]
fn a_whole_copy_sends_what_is_allocated_and_leaves_nothing_of_what_was_there() {
    let images = Images::new();
    images.put("from", 100_000, b"content");
    images.put("from", BYTES - 3, b"end");
    images.put("to", 2 << 20, &[9; 300_000]);
    let (from, mut to) = images.open();
    let allocated = from.allocated().unwrap();
    let mut source = DiskSource::of(from, true, allocated);

    let sent = send(&mut source, &mut to);

    assert!(images.content("from") == images.content("to"));
    assert!(sent < 4 * PART, "{sent} bytes");
}

#[test]
fn only_the_blocks_that_changed_are_sent_and_zeros_not_as_bytes() {
    let images = Images::new();
    images.put("to", 0, &[7; 3 * PART]);
    images.put("from", 0, &[7; PART]);
    images.put("from", PART as u64 + 5, b"x");
    let (_, mut to) = images.open();
    let mut source = source(&images, false, &[1]);
    send(&mut source, &mut to);
    source.add(vec![2]);
    for piece in source.announced() {
        to.announce(&piece).unwrap();
    }
    let piece = source.next_piece().unwrap().unwrap();

    to.apply(&piece).unwrap();

    assert_eq!(piece.len(), size_of::<Entry>());
    assert!(images.content("from") == images.content("to"));
}

#[test]
fn what_makes_no_sense_is_not_put_into_an_image() {
    let images = Images::new();
    images.put("from", 0, &[7; PART]);
    let (_, mut to) = images.open();
    let mut source = source(&images, false, &[0]);
    let piece = source.next_piece().unwrap().unwrap();
    let refused = |result: Result<u64, DiskIntakeError>| result.unwrap_err().to_string();

    assert!(refused(to.apply(&piece)).contains("not announced"));
    assert!(refused(to.begin(&[3]).map(u64::from)).contains("neither whole nor changes"));
    let beyond = Run {
        first: 60.into(),
        count: 5.into(),
    };
    let announced = to.announce(beyond.as_bytes()).map(|()| 0);
    assert!(refused(announced).contains("beyond the image"));
    to.announce(
        Run {
            first: 0.into(),
            count: 1.into(),
        }
        .as_bytes(),
    )
    .unwrap();
    assert!(refused(to.apply(&piece[..piece.len() - 1])).contains("cut off"));
    assert!(images.content("to").iter().all(|byte| *byte == 0));
}
