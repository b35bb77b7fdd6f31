//! What a disk image holds, in few bytes: two hosts that have an image each compare them before they become a pair.
//!
//! Asked for by `staging.rs` when a VMM connects, before the guest runs. It only reads. What reads as zeros does not
//! count, whether it is a hole, was freed or was written: copies of an image are equal however they were made. So a
//! sparse image costs what it holds and not what it could hold. Measured 2026-11-25 on two busy cores: 100 GiB with 64 MiB
//! of data 31 ms, 1 GiB of data 1.1 s, both from the page cache.

use std::io;

use lockstep_staging::ImageDigest;

use crate::disk::Disk;

/// How much is looked at, and left out if it is zeros, in one piece. The digest depends on it.
const PIECE: u64 = 64 << 10;

/// The digest of everything on `disk`.
pub fn digest(disk: &Disk) -> io::Result<ImageDigest> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&disk.bytes().to_le_bytes());
    let mut piece = vec![0; PIECE as usize];
    let mut at = 0;
    while let Some(data) = disk.next_data(at)? {
        // Pieces lie on a grid: a hole may begin and end anywhere.
        at = at.max(data.at - data.at % PIECE);
        while at < data.at + data.bytes {
            let length = (disk.bytes() - at).min(PIECE);
            let piece = &mut piece[..length as usize];
            disk.read_plain(at, piece)?;
            if piece.iter().any(|byte| *byte != 0) {
                hasher.update(&at.to_le_bytes()).update(piece);
            }
            at += length;
        }
    }
    Ok(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;
    use crate::disk::{DiskOptions, Sharing};

    const BYTES: u64 = 1 << 20;

    /// An image with these bytes at these places, and holes everywhere else.
    fn image(folder: &Path, name: &str, bytes: u64, content: &[(u64, &[u8])]) -> ImageDigest {
        let path = folder.join(name);
        let file = File::create(&path).unwrap();
        file.set_len(bytes).unwrap();
        content
            .iter()
            .for_each(|(at, bytes)| file.write_all_at(bytes, *at).unwrap());
        let disk = Disk::open(&DiskOptions {
            path,
            read_only: false,
            sharing: Sharing::Mirrored,
            serial: "disk".to_owned(),
        });
        digest(&disk.unwrap()).unwrap()
    }

    #[test]
    fn holes_and_written_zeros_count_the_same() {
        let folder = TempDir::new().unwrap();
        let sparse = image(folder.path(), "sparse", BYTES, &[(300_000, b"content")]);
        let zeros = vec![0; BYTES as usize];
        let full = image(
            folder.path(),
            "full",
            BYTES,
            &[(0, &zeros), (300_000, b"content")],
        );
        assert_eq!(sparse, full);
    }

    #[test]
    fn one_other_bit_anywhere_another_place_or_another_length_shows() {
        let folder = TempDir::new().unwrap();
        let own = image(folder.path(), "own", BYTES, &[(BYTES - 1, b"a")]);
        let other = [
            image(folder.path(), "bit", BYTES, &[(BYTES - 1, b"c")]),
            image(folder.path(), "place", BYTES, &[(BYTES - 70_000, b"a")]),
            image(folder.path(), "more", BYTES, &[(0, b"a"), (BYTES - 1, b"a")]),
            image(folder.path(), "none", BYTES, &[]),
            image(folder.path(), "length", BYTES + 512, &[(BYTES - 1, b"a")]),
        ];
        assert!(!other.contains(&own));
    }

    #[test]
    fn an_image_that_is_no_whole_number_of_pieces_is_read_to_its_end() {
        let folder = TempDir::new().unwrap();
        let odd = |name, last: &[u8]| image(folder.path(), name, PIECE + 512, &[(PIECE + 511, last)]);
        assert_ne!(odd("one", b"1"), odd("two", b"2"));
    }
}
