//! What a kick takes along.

use super::*;
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_STATUS,
};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;

const NET: DeviceId = DeviceId::new(0);
const BLK: DeviceId = DeviceId::new(1);
const TX: QueueIndex = QueueIndex::new(1);
const REQUESTS: QueueIndex = QueueIndex::new(0);

/// A network card and a disk, with a chain in each of their queues. Those that are `driven` have a driver that is ready.
fn parts(driven: &[DeviceId]) -> Parts {
    let memory = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap());
    let mut parts = Parts {
        memory,
        board: Board::micro(),
        devices: vec![
            MmioDevice::new(NET, DeviceKind::Net, 0, Vec::new()),
            MmioDevice::new(BLK, DeviceKind::Blk, 0, Vec::new()),
        ],
        time: GuestTime::ZERO,
        position: Position::ZERO,
        cmdline: String::new(),
        memory_bytes: 0x10000,
        seed: None,
        randomness: [0; 32],
        restarts: false,
        call: None,
        exit: Exit::default(),
        noted: None,
    };
    for (place, (device, queue)) in (1_u64..).zip([(NET, NET_RX), (NET, TX), (BLK, REQUESTS)]) {
        offer(&mut parts, device, queue, GuestAddress(place * 0x1000));
    }
    driven.iter().for_each(|device| drive(&mut parts, *device));
    parts
}

fn offer(parts: &mut Parts, device: DeviceId, queue: QueueIndex, place: GuestAddress) {
    let mock = MockSplitQueue::create(&*parts.memory, place, 8);
    let chain = Descriptor::new(0x8000, 16, 0, 0);
    mock.build_multiple_desc_chains(&[RawDescriptor::from(chain)])
        .unwrap();
    let made = mock.create_queue().unwrap();
    let ring = parts.devices[usize::from(device.get())].ring_mut(queue);
    *ring.unwrap().queue_mut() = made;
}

fn drive(parts: &mut Parts, device: DeviceId) {
    for (register, value) in [
        (VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1_u32),
        (VIRTIO_MMIO_DRIVER_FEATURES, 1),
        (VIRTIO_MMIO_STATUS, 0xb),
        (VIRTIO_MMIO_STATUS, 0xf),
    ] {
        parts.devices[usize::from(device.get())].write(u64::from(register), &value.to_le_bytes());
    }
}

fn kicked(parts: &Parts) -> Vec<(DeviceId, QueueIndex, usize)> {
    let kicks = parts.exit.kicks.iter();
    kicks
        .map(|kick| (kick.device, kick.queue, kick.heads.len()))
        .collect()
}

#[test]
fn a_kick_takes_what_all_queues_hold_but_receive_buffers() {
    let mut parts = parts(&[NET, BLK]);
    parts.kicked(BLK, REQUESTS);
    assert_eq!(kicked(&parts), [(BLK, REQUESTS, 1), (NET, TX, 1)]);
}

#[test]
fn a_kick_of_what_was_taken_along_is_no_output() {
    let mut parts = parts(&[NET, BLK]);
    parts.kicked(BLK, REQUESTS);
    parts.exit = Exit::default();
    parts.kicked(NET, TX);
    assert!(!parts.exit.calls());
}

#[test]
fn a_device_whose_driver_is_not_ready_keeps_its_chains() {
    let mut parts = parts(&[BLK]);
    parts.kicked(BLK, REQUESTS);
    assert_eq!(kicked(&parts), [(BLK, REQUESTS, 1)]);
}
