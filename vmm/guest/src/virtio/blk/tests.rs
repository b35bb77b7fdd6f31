//! The disk's driver against a device that reads the same memory.

use super::*;
use crate::virtio::queue::tests::{Device, registers};

/// A disk that wants flushes, with so many descriptors, and the device's side of it.
fn open(descriptors: u32) -> Result<(Blk, Device), OpenError> {
    let registers = registers(&[
        (0x000, 0x7472_6976),
        (0x004, 2),
        (0x008, Kind::Blk as u32),
        // Both halves read the same, so this offers virtio 1 as well.
        (0x010, FEATURE_FLUSH as u32 | 1),
        (0x034, descriptors),
        (0x100, 1 << 20),
    ]);
    let blk = Blk::open(registers, || ())?;
    let device = Device::of(&blk.queue);
    Ok((blk, device))
}

fn write(sector: u64, bytes: Vec<u8>) -> Request {
    Request::Write { sector, bytes }
}

/// So many bytes, each sector of which differs from the one before.
fn pattern(bytes: usize, salt: u8) -> Vec<u8> {
    (0..bytes).map(|at| (at / SECTOR_BYTES) as u8 ^ salt).collect()
}

/// Where a request goes, by its header.
fn sector(header: &[u8]) -> u64 {
    u64::from_le_bytes(header[8..16].try_into().unwrap())
}

/// Does a write to a medium that begins at sector 0; answers its head.
fn perform(device: &mut Device, medium: &mut [u8], status: u8) -> u16 {
    let head = device.take().unwrap();
    let buffers = device.read(head);
    assert!(buffers[1].len() <= TRANSFER_MAX);
    let at = sector(&buffers[0]) as usize * SECTOR_BYTES;
    medium[at..at + buffers[1].len()].copy_from_slice(&buffers[1]);
    device.set_status(head, status);
    head
}

#[test]
fn two_writes_in_parts_are_done_each_with_its_last_part_and_come_back_whole() {
    let (mut blk, mut device) = open(64).unwrap();
    let len = 2 * TRANSFER_MAX + SECTOR_BYTES;
    let contents = [pattern(len, 1), pattern(len, 2)];
    let places = contents.each_ref().map(|bytes| bytes.as_ptr());
    let [one, two] = contents.clone();
    let next = (len / SECTOR_BYTES) as u64;
    // The very vectors whose places were taken, not their copies.
    let [first, second] = contents;
    blk.submit(Tag(1), write(0, first)).unwrap();
    blk.submit(Tag(2), write(next, second)).unwrap();

    let mut medium = alloc::vec![0; 2 * len];
    let mut starts = Vec::new();
    let perform_next = |_| {
        let head = perform(&mut device, &mut medium, STATUS_OK);
        starts.push(device.chain(head)[1].0);
        head
    };
    let heads: Vec<u16> = (0..6).map(perform_next).collect();
    assert!(
        medium[..len] == one && medium[len..] == two,
        "each sector is where it belongs"
    );
    let parts = places.map(|place| [0, 1, 2].map(|part| (place as usize + part * TRANSFER_MAX) as u64));
    assert_eq!(starts, parts.concat(), "nothing was copied");

    // The younger one is over first.
    let finish = |device: &mut Device, blk: &mut Blk, at: usize| {
        device.finish(u32::from(heads[at]), 1);
        blk.poll()
    };
    for at in [0, 3, 1, 4] {
        assert!(finish(&mut device, &mut blk, at).is_none());
    }
    for (last, tag, bytes, place) in [(5, Tag(2), two, places[1]), (2, Tag(1), one, places[0])] {
        let done = finish(&mut device, &mut blk, last).unwrap();
        assert_eq!((done.tag, done.result), (tag, Ok(())));
        assert!(
            done.bytes == bytes && done.bytes.as_ptr() == place,
            "nothing was copied"
        );
    }
    assert_eq!(blk.queue.room(), 64);
}

#[test]
fn a_write_in_parts_fails_when_one_part_does_and_another_write_does_not() {
    let (mut blk, mut device) = open(64).unwrap();
    let len = TRANSFER_MAX + SECTOR_BYTES;
    blk.submit(Tag(1), write(0, pattern(len, 1))).unwrap();
    blk.submit(Tag(2), write(0, pattern(len, 2))).unwrap();
    let mut medium = alloc::vec![0; len];
    let results = [1, STATUS_OK, STATUS_OK, STATUS_OK].map(|status| {
        let head = perform(&mut device, &mut medium, status);
        device.finish(u32::from(head), 1);
        blk.poll().map(|done| (done.tag, done.result))
    });
    assert_eq!(
        results,
        [None, Some((Tag(1), Err(DiskError))), None, Some((Tag(2), Ok(())))]
    );
}

#[test]
fn a_flush_needs_no_more_room_than_it_takes() {
    let (mut blk, _device) = open(64).unwrap();
    for tag in 0..20 {
        blk.submit(Tag(tag), write(0, pattern(SECTOR_BYTES, 0))).unwrap();
    }
    blk.submit(Tag(20), Request::Flush).unwrap();
    assert_eq!(blk.queue.room(), FLUSH_DESCRIPTORS);
    let refused = blk.submit(Tag(21), write(7, pattern(SECTOR_BYTES, 0)));
    assert!(matches!(refused, Err(Request::Write { sector: 7, .. })));
    blk.submit(Tag(22), Request::Flush).unwrap();
    assert_eq!(blk.queue.room(), 0);
    assert!(matches!(blk.submit(Tag(23), Request::Flush), Err(Request::Flush)));
}

#[test]
fn a_device_with_too_few_descriptors_for_the_longest_batches_is_refused() {
    const { assert!(DESCRIPTORS_MIN > 32 && DESCRIPTORS_MIN <= 64) };
    assert_eq!(open(32).err(), Some(OpenError::Queue(QUEUE)));
    let (mut blk, _device) = open(64).unwrap();
    for tag in 0..BATCHES_OUT as u32 {
        blk.submit(Tag(2 * tag), write(0, alloc::vec![0; BATCH_MAX]))
            .unwrap();
        blk.submit(Tag(2 * tag + 1), Request::Flush).unwrap();
    }
    assert_eq!(blk.queue.room(), 64 - DESCRIPTORS_MIN);
}
