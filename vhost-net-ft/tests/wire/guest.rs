//! A guest's memory and queues, set up over a real vhost-user connection; the driver is the test.

use std::fs::File;
use std::os::fd::OwnedFd;

use lockstep_protocol::ids::Head;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::netns::{OUTSIDE_IP, PORT};
use crate::process::Process;

/// VERSION_1, MRG_RXBUF.
pub(crate) const PLAIN_FEATURES: u64 = 1 << 32 | 1 << 15;
const MEMORY: usize = 1 << 20;
const SIZE: u16 = 64;
const RX: usize = 0;
const TX: usize = 1;
const BUFFERS: u64 = 0x4_0000;
const BUFFER: u64 = 2048;

pub(crate) struct Guest {
    memory: GuestMemoryMmap,
    kicks: Vec<EventFd>,
    available: [u16; 2],
    received: u16,
    features: u64,
    front_end: Frontend,
}

/// Where a queue's three parts lie.
fn rings(queue: usize) -> [u64; 3] {
    let start = 0x1_0000 * (queue as u64 + 1);
    [start, start + 0x2000, start + 0x4000]
}

impl Guest {
    pub(crate) fn connect(process: &Process, features: u64) -> Self {
        let fd: OwnedFd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(MEMORY as u64).unwrap();
        let range = (GuestAddress(0), MEMORY, Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        let mut front_end = Frontend::connect(&process.socket, 2).unwrap();
        front_end.set_owner().unwrap();
        let offered = front_end.get_features().unwrap();
        let protocol = front_end.get_protocol_features().unwrap();
        assert!(protocol.contains(VhostUserProtocolFeatures::CONFIG));
        front_end
            .set_protocol_features(
                VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::RESET_DEVICE,
            )
            .unwrap();
        front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let features = features & PLAIN_FEATURES | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        assert_eq!(features & !offered, 0);
        front_end.set_features(features).unwrap();
        let region = memory.iter().next().unwrap();
        front_end
            .set_mem_table(&[VhostUserMemoryRegionInfo::from_guest_region(region).unwrap()])
            .unwrap();
        let mut guest = Self {
            memory,
            kicks: Vec::new(),
            available: [0; 2],
            received: 0,
            features,
            front_end,
        };
        guest.set_up_queues();
        guest
    }

    fn set_up_queues(&mut self) {
        let region = self.memory.iter().next().unwrap();
        let base = region
            .get_host_address(vm_memory::MemoryRegionAddress(0))
            .unwrap() as u64;
        self.kicks = [RX, TX]
            .map(|queue| set_up(&mut self.front_end, queue, base))
            .into();
    }

    /// The guest starts over, and its front-end does as QEMU 9.1: it stops the queues and resets the device, and when the
    /// driver is there again it enables the queues before it sets the features.
    pub(crate) fn restart(&mut self) {
        for queue in [RX, TX] {
            self.front_end.get_vring_base(queue).unwrap();
        }
        self.front_end.reset_device().unwrap();
        for queue in [RX, TX] {
            let [_, available, used] = rings(queue);
            self.memory.write_obj(0_u32, GuestAddress(available)).unwrap();
            self.memory.write_obj(0_u32, GuestAddress(used)).unwrap();
            self.front_end.set_vring_enable(queue, true).unwrap();
        }
        (self.available, self.received) = ([0; 2], 0);
        self.front_end.set_features(self.features).unwrap();
        self.set_up_queues();
    }

    /// A chain of header and frame in two descriptors.
    pub(crate) fn write_tx_chain(&mut self, frame: &[u8]) -> Head {
        let index = self.available[TX] * 2 % SIZE;
        let buffer = BUFFERS + u64::from(SIZE + index) * BUFFER;
        self.memory.write_slice(frame, GuestAddress(buffer)).unwrap();
        let header = frame.len().min(12);
        self.write_descriptor(TX, index, buffer, header, 1, index + 1);
        self.write_descriptor(TX, index + 1, buffer + header as u64, frame.len() - header, 0, 0);
        self.make_available(TX, index);
        Head::new(index)
    }

    pub(crate) fn transmit_plain(&mut self, frame: &[u8]) {
        self.write_tx_chain(frame);
        self.kicks[TX].write(1).unwrap();
    }

    pub(crate) fn tx_used(&self) -> u16 {
        self.used(TX)
    }

    pub(crate) fn offer_rx_buffers(&mut self, count: u16) {
        for index in 0..count {
            self.write_descriptor(
                RX,
                index,
                BUFFERS + u64::from(index) * BUFFER,
                BUFFER as usize,
                2,
                0,
            );
            self.make_available(RX, index);
        }
        self.kicks[RX].write(1).unwrap();
    }

    /// The next frame, from one buffer.
    pub(crate) fn received(&mut self) -> Option<Vec<u8>> {
        if self.used(RX) == self.received {
            return None;
        }
        let place = rings(RX)[2] + 4 + u64::from(self.received % SIZE) * 8;
        let [index, length]: [u32; 2] = self.memory.read_obj(GuestAddress(place)).unwrap();
        self.received += 1;
        let mut frame = vec![0; length as usize];
        self.memory
            .read_slice(&mut frame, GuestAddress(BUFFERS + u64::from(index) * BUFFER))
            .unwrap();
        Some(frame)
    }

    fn used(&self, queue: usize) -> u16 {
        self.memory
            .load(
                GuestAddress(rings(queue)[2] + 2),
                std::sync::atomic::Ordering::Acquire,
            )
            .unwrap()
    }

    fn write_descriptor(&self, queue: usize, index: u16, buffer: u64, length: usize, flags: u16, next: u16) {
        let place = rings(queue)[0] + u64::from(index) * 16;
        let rest = length as u64 | u64::from(flags) << 32 | u64::from(next) << 48;
        self.memory
            .write_obj([buffer, rest], GuestAddress(place))
            .unwrap();
    }

    fn make_available(&mut self, queue: usize, index: u16) {
        let [_, ring, _] = rings(queue);
        let slot = u64::from(self.available[queue] % SIZE);
        self.memory
            .write_obj(index, GuestAddress(ring + 4 + slot * 2))
            .unwrap();
        self.available[queue] += 1;
        let place = GuestAddress(ring + 2);
        self.memory
            .store(self.available[queue], place, std::sync::atomic::Ordering::Release)
            .unwrap();
    }
}

fn set_up(front_end: &mut Frontend, queue: usize, base: u64) -> EventFd {
    let [descriptors, available, used] = rings(queue);
    front_end.set_vring_num(queue, SIZE).unwrap();
    let addresses = VringConfigData {
        queue_max_size: SIZE,
        queue_size: SIZE,
        flags: 0,
        desc_table_addr: base + descriptors,
        used_ring_addr: base + used,
        avail_ring_addr: base + available,
        log_addr: None,
    };
    front_end.set_vring_addr(queue, &addresses).unwrap();
    front_end.set_vring_base(queue, 0).unwrap();
    let (kick, call) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
    front_end.set_vring_call(queue, &call).unwrap();
    front_end.set_vring_kick(queue, &kick).unwrap();
    front_end.set_vring_enable(queue, true).unwrap();
    kick
}

/// A frame from 10.77.0.2 to the outside, virtio header first, as a UDP packet with this payload.
pub(crate) fn udp_frame(payload: &[u8]) -> Vec<u8> {
    let udp_length = u16::try_from(8 + payload.len()).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend_from_slice(&(20 + udp_length).to_be_bytes());
    ip.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0, 10, 77, 0, 2]);
    ip.extend_from_slice(&OUTSIDE_IP);
    let sum: u32 = ip
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = vec![0; 12];
    frame.extend_from_slice(&[0xff; 6]);
    frame.extend_from_slice(&[0x52, 0x54, 0, 0, 0, 2, 8, 0]);
    frame.extend_from_slice(&ip);
    for word in [PORT + 1, PORT, udp_length, 0] {
        frame.extend_from_slice(&word.to_be_bytes());
    }
    frame.extend_from_slice(payload);
    frame
}
