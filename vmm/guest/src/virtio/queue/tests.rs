//! The queue against a device that reads the same memory. The tests of the drivers use the same device.

use super::*;
use crate::virtio::mmio::{REGISTER_BYTES, Registers};

/// Registers that are plain memory: what the driver reads is what was put there, or what it wrote itself.
pub(in crate::virtio) fn registers(values: &[(usize, u32)]) -> Registers {
    let words = alloc::vec![0_u64; REGISTER_BYTES / 8].leak();
    let base = words.as_mut_ptr().expose_provenance();
    for (offset, value) in values {
        let register = core::ptr::with_exposed_provenance_mut::<u32>(base + offset);
        // SAFETY: the tests name aligned offsets within the registers, which were leaked.
        unsafe { register.write(*value) };
    }
    // SAFETY: the memory is aligned to eight bytes, leaked, and nobody else knows it.
    unsafe { Registers::at(base) }
}

/// The device's side, by bare addresses, as the VMM has it.
pub(in crate::virtio) struct Device {
    places: Places,
    size: u16,
    seen: u16,
}

impl Device {
    pub(in crate::virtio) fn of(queue: &Queue) -> Self {
        Device {
            places: queue.places(),
            size: queue.size(),
            seen: 0,
        }
    }

    fn half(&self, address: u64) -> *mut u16 {
        core::ptr::with_exposed_provenance_mut(address as usize)
    }

    pub(in crate::virtio) fn take(&mut self) -> Option<u16> {
        // SAFETY: the ring's memory is never freed.
        let index = unsafe { self.half(self.places.available + 2).read_volatile() };
        if index == self.seen {
            return None;
        }
        let slot = u64::from(self.seen % self.size);
        self.seen = self.seen.wrapping_add(1);
        // SAFETY: as above.
        Some(unsafe { self.half(self.places.available + 4 + 2 * slot).read_volatile() })
    }

    /// The addresses and lengths of a chain's buffers.
    pub(in crate::virtio) fn chain(&self, head: u16) -> Vec<(u64, usize)> {
        let mut buffers = Vec::new();
        let mut next = Some(head);
        while let Some(index) = next {
            let entry = self.places.descriptors + (DESCRIPTOR_BYTES * usize::from(index)) as u64;
            let half = |at: u64| {
                // SAFETY: the ring's memory is never freed.
                u64::from(unsafe { self.half(entry + 2 * at).read_volatile() })
            };
            let address = half(0) | half(1) << 16 | half(2) << 32 | half(3) << 48;
            buffers.push((address, (half(4) | half(5) << 16) as usize));
            next = (half(6) as u16 & DESCRIPTOR_NEXT != 0).then(|| half(7) as u16);
        }
        buffers
    }

    /// What the driver put into a chain's buffers.
    pub(in crate::virtio) fn read(&self, head: u16) -> Vec<Vec<u8>> {
        let read = |(address, len): (u64, usize)| {
            let start = core::ptr::with_exposed_provenance::<u8>(address as usize);
            // SAFETY: the queue keeps the buffer's memory while the chain is out.
            unsafe { core::slice::from_raw_parts(start, len) }.to_vec()
        };
        self.chain(head).into_iter().map(read).collect()
    }

    /// Writes the byte that a chain ends with.
    pub(in crate::virtio) fn set_status(&self, head: u16, status: u8) {
        let Some(&(address, 1)) = self.chain(head).last() else {
            panic!("the chain has no status byte")
        };
        let byte = core::ptr::with_exposed_provenance_mut::<u8>(address as usize);
        // SAFETY: the queue keeps the buffer's memory while the chain is out, and nobody reads it meanwhile.
        unsafe { byte.write_volatile(status) };
    }

    pub(in crate::virtio) fn finish(&mut self, head: u32, written: u32) {
        let index = self.half(self.places.used + 2);
        // SAFETY: the ring's memory is never freed.
        let at = unsafe { index.read_volatile() };
        let entry = self
            .half(self.places.used + 4 + 8 * u64::from(at % self.size))
            .cast::<u32>();
        // SAFETY: as above.
        unsafe { entry.write_volatile(head) };
        // SAFETY: as above.
        unsafe { entry.wrapping_add(1).write_volatile(written) };
        // SAFETY: as above.
        unsafe { index.write_volatile(at.wrapping_add(1)) };
    }

    fn set_flags(&mut self, flags: u16) {
        // SAFETY: the ring's memory is never freed.
        unsafe { self.half(self.places.used).write_volatile(flags) };
    }
}

#[test]
fn buffers_come_back_to_whoever_gave_them() {
    let mut queue = Queue::new(8);
    let mut device = Device::of(&queue);
    let head = queue
        .add([
            Piece::from_driver(alloc::vec![1, 2]),
            Piece::for_device(alloc::vec![0; 4]),
        ])
        .unwrap();
    assert_eq!(device.take(), Some(head));
    assert!(queue.pop().is_none());
    device.finish(u32::from(head), 4);
    let finished = queue.pop().unwrap();
    assert_eq!((finished.head, finished.written), (head, 4));
    assert_eq!(
        finished.buffers,
        [Some(alloc::vec![1, 2]), Some(alloc::vec![0; 4]), None]
    );
    assert_eq!(queue.room(), 8);
}

#[test]
fn a_full_queue_gives_the_pieces_back() {
    let mut queue = Queue::new(2);
    let piece = || Piece::from_driver(alloc::vec![0]);
    queue.add([piece(), piece()]).unwrap();
    let [
        Piece {
            bytes: Bytes::Own(bytes),
            ..
        },
    ] = queue.add([piece()]).unwrap_err()
    else {
        panic!("another piece came back")
    };
    assert_eq!(bytes, [0]);
}

#[test]
fn parts_are_read_where_they_lie_and_the_whole_comes_back_with_the_last_of_them() {
    let mut queue = Queue::new(4);
    let mut device = Device::of(&queue);
    let whole = Rc::new(alloc::vec![1, 2, 3, 4, 5]);
    let heads = [0..3, 3..5].map(|part| queue.add([Piece::shared(&whole, part)]).unwrap());
    let start = whole.as_ptr() as u64;
    assert_eq!(
        heads.map(|head| device.chain(head)[0]),
        [(start, 3), (start + 3, 2)]
    );
    assert_eq!(
        heads.map(|head| device.read(head)),
        [[alloc::vec![1, 2, 3]], [alloc::vec![4, 5]]]
    );

    device.finish(u32::from(heads[1]), 0);
    assert_eq!(queue.pop().unwrap().buffers, [None, None, None]);
    assert_eq!(Rc::strong_count(&whole), 2);
    device.finish(u32::from(heads[0]), 0);
    queue.pop().unwrap();
    assert_eq!(Rc::into_inner(whole), Some(alloc::vec![1, 2, 3, 4, 5]));
    assert_eq!(queue.room(), 4);
}

#[test]
fn a_queue_that_is_dropped_leaves_to_the_device_what_it_has() {
    let mut queue = Queue::new(2);
    let device = Device::of(&queue);
    let whole = Rc::new(alloc::vec![1, 2]);
    let head = queue.add([Piece::shared(&whole, 0..2)]).unwrap();
    drop((queue, whole));
    assert_eq!(device.read(head), [[1, 2]]);
}

#[test]
fn a_device_that_returns_nonsense_is_ignored() {
    let mut queue = Queue::new(4);
    let mut device = Device::of(&queue);
    let head = queue.add([Piece::from_driver(alloc::vec![9])]).unwrap();
    device.finish(u32::MAX, 0);
    device.finish(u32::from(head) ^ 1, 0);
    device.finish(u32::from(head), u32::MAX);
    device.finish(u32::from(head), 0);
    assert_eq!(queue.pop().unwrap().head, head);
    assert!(queue.pop().is_none());
}

#[test]
fn one_kick_announces_all_that_was_added_and_none_when_the_device_wants_none() {
    let mut queue = Queue::new(4);
    let mut device = Device::of(&queue);
    queue.add([Piece::from_driver(alloc::vec![1])]).unwrap();
    queue.add([Piece::from_driver(alloc::vec![2])]).unwrap();
    assert!(queue.take_kick());
    assert!(!queue.take_kick());
    device.set_flags(NO_NOTIFY);
    queue.add([Piece::from_driver(alloc::vec![3])]).unwrap();
    assert!(!queue.take_kick());
}

#[test]
fn the_ring_goes_round() {
    let mut queue = Queue::new(2);
    let mut device = Device::of(&queue);
    for round in 0..70_000_u32 {
        let head = queue
            .add([Piece::from_driver(round.to_le_bytes().to_vec())])
            .unwrap();
        assert_eq!(device.take(), Some(head));
        device.finish(u32::from(head), 0);
        let finished = queue.pop().unwrap();
        assert_eq!(finished.buffers[0].as_deref(), Some(&round.to_le_bytes()[..]));
    }
}
