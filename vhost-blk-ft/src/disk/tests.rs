//! Real files, opened and changed.

use std::io::Write;

use tempfile::{NamedTempFile, TempDir};

use super::*;

fn file(bytes: usize) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&vec![7; bytes]).unwrap();
    file
}

fn options(path: &Path, sharing: Sharing) -> DiskOptions {
    DiskOptions {
        path: path.to_owned(),
        read_only: false,
        sharing,
        serial: "disk-1".to_owned(),
    }
}

fn disk(file: &NamedTempFile, sharing: Sharing) -> Disk {
    Disk::open(&options(file.path(), sharing)).unwrap()
}

fn content(file: &NamedTempFile) -> Vec<u8> {
    std::fs::read(file.path()).unwrap()
}

#[test]
fn a_disk_that_is_missing_or_of_the_wrong_kind_or_size_is_said_to_be_so() {
    let folder = TempDir::new().unwrap();
    let told = |path: &Path| {
        Disk::open(&options(path, Sharing::Alone))
            .unwrap_err()
            .to_string()
    };
    assert!(told(&folder.path().join("none")).contains("There is no disk"));
    assert!(told(folder.path()).contains("neither a regular file nor a block device"));
    assert!(told(file(513).path()).contains("513 bytes"));
    assert!(told(file(0).path()).contains("0 bytes"));
}

#[test]
fn two_plain_processes_cannot_have_one_disk_but_the_two_hosts_of_a_pair_can() {
    let file = file(512);
    let first = disk(&file, Sharing::Alone);
    let second = Disk::open(&options(file.path(), Sharing::Shared)).unwrap_err();
    assert!(second.to_string().contains("in use by another process"));
    drop(first);
    let _one_host = disk(&file, Sharing::Shared);
    let _other_host = disk(&file, Sharing::Shared);
}

#[test]
fn what_is_written_is_read_back_in_whatever_pieces() {
    let file = file(4096);
    let mut disk = disk(&file, Sharing::Alone);
    let (mut first, mut second) = ([1; 100], [2; 412]);
    disk.write(512, &[first.as_mut_slice().into(), second.as_mut_slice().into()])
        .unwrap();
    disk.flush().unwrap();
    let mut back = [0; 514];
    disk.read(511, &mut [back.as_mut_slice().into()]).unwrap();
    assert_eq!(
        (back[0], back[1], back[100], back[101], back[512], back[513]),
        (7, 1, 1, 2, 2, 7)
    );
}

#[test]
fn a_read_beyond_the_end_fails_and_does_not_pretend() {
    let mut disk = disk(&file(512), Sharing::Alone);
    let mut room = [0; 512];
    assert!(disk.read(1, &mut [room.as_mut_slice().into()]).is_err());
}

#[test]
fn a_shared_disk_takes_writes_that_direct_io_cannot_take() {
    let file = file(4096);
    let mut disk = disk(&file, Sharing::Shared);
    assert_eq!(disk.write_some(3, b"unaligned").unwrap(), 9);
    assert_eq!(&content(&file)[2..13], b"\x07unaligned\x07");
}

#[test]
fn a_discarded_or_zeroed_extent_reads_as_zeros_and_the_file_stays_as_long() {
    let file = file(8192);
    let mut disk = disk(&file, Sharing::Alone);
    disk.discard(Extent { at: 0, bytes: 512 }).unwrap();
    let done = disk
        .zero(
            Extent {
                at: 4096,
                bytes: 4096,
            },
            true,
        )
        .unwrap();
    let content = content(&file);
    assert_eq!((content.len(), content[600]), (8192, 7));
    assert!(!done || content[4096..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_name_longer_than_its_field_is_cut_at_a_character() {
    assert_eq!(&pad_serial("nineteen-bytes-long\u{e9}"), b"nineteen-bytes-long\0");
}

#[test]
fn what_is_zeroed_or_discarded_on_a_shared_disk_stays_when_it_is_complete() {
    let file = file(1 << 20);
    let mut disk = disk(&file, Sharing::Shared);
    let part = Extent { at: 0, bytes: 65_536 };
    disk.zero(part, true).unwrap();
    assert!(!disk.dirty);
    disk.discard(part).unwrap();
    assert!(!disk.dirty);
}

#[test]
fn what_is_written_for_a_driver_that_never_flushes_stays_when_it_is_complete() {
    let file = file(1 << 20);
    let mut disk = disk(&file, Sharing::Alone);
    disk.write(0, &[[1; 512].as_mut_slice().into()]).unwrap();
    assert!(disk.dirty);

    disk.set_write_through(true);
    disk.write(512, &[[2; 512].as_mut_slice().into()]).unwrap();
    assert!(!disk.dirty);
    disk.zero(Extent { at: 0, bytes: 512 }, false).unwrap();
    assert!(!disk.dirty);
}
