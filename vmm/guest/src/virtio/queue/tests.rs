//! The queue against a device that reads the same memory.

use super::*;

/// The device's side, by bare addresses, as the VMM has it.
struct Device {
    places: Places,
    size: u16,
    seen: u16,
}

impl Device {
    fn of(queue: &Queue) -> Self {
        Device {
            places: queue.places(),
            size: queue.size(),
            seen: 0,
        }
    }

    fn half(&self, address: u64) -> *mut u16 {
        core::ptr::with_exposed_provenance_mut(address as usize)
    }

    fn take(&mut self) -> Option<u16> {
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

    fn finish(&mut self, head: u32, written: u32) {
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
    assert_eq!(queue.add([piece()]).unwrap_err()[0].bytes, [0]);
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
