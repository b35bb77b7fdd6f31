//! Every bound of staging, with the reason for it.
//!
//! Rings are sized so that the largest entry takes at most a quarter of its ring: an entry and the padding before it
//! then always fit into a ring that is half empty, so "wake me at half" can never spin.

/// The largest frame that may be staged: virtio header (12), Ethernet header with two VLAN tags (22), and the 65,535
/// bytes of an IP packet that segmentation offload may hand over whole, rounded up.
pub const FRAME_BYTES_MAX: usize = 65_600;

/// The largest completion of one request: 1 MiB of data, its status byte, and room to keep the sum a multiple of 8.
pub const COMPLETION_BYTES_MAX: usize = (1 << 20) + 8;

/// Completions of a net device are only counts of returned buffers: small.
pub const NET_COMPLETIONS_RING: u64 = 64 << 10;

/// About 1,300 frames of 1,500 bytes, or 31 of the largest: some milliseconds of a fast link while a vCPU is busy.
pub const NET_FRAMES_RING: u64 = 2 << 20;

/// Seven largest reads in flight; more wait in the device process.
pub const BLK_COMPLETIONS_RING: u64 = 8 << 20;

/// A disk stages no frames; a ring has to have some size.
pub const BLK_FRAMES_RING: u64 = RING_BYTES_MIN;

/// 2,730 orders: more than any two queues have heads, so a correct VMM never finds it full.
pub const ORDERS_RING: u64 = 64 << 10;

/// Orders that a device process may sleep through until their ack. More, and their chains would be missed by a guest
/// that sends much: the micro guest has 24 large frames on their way at most.
pub const DEFERRED_MAX: usize = 12;

/// Chains that were given back without waking the VMM. The VMM itself gives them to an idle guest when half a queue of
/// them is there, which is more.
pub const UNTOLD_MAX: u16 = 64;

/// Descriptors of one chain, those of an indirect table included: twice the largest queue that virtio drivers use.
pub const CHAIN_DESCRIPTORS_MAX: usize = 2048;

/// Blocks of a disk image whose changes are told: as many as an image has at most.
pub const CHANGED_BLOCKS_MAX: usize = 1 << 20;

/// No ring may be smaller than a page.
pub const RING_BYTES_MIN: u64 = 4096;

/// No ring may make the other side map more than this.
pub const RING_BYTES_MAX: u64 = 64 << 20;

/// The largest virtio configuration space that fits the set-up answer.
pub const CONFIG_BYTES_MAX: usize = 256;

/// How long a disk process may take to read its image when the VMM wants its digest: a terabyte at 300 MB/s.
pub const IMAGE_PATIENCE: std::time::Duration = std::time::Duration::from_secs(3600);

/// The longest release string and the longest reason of a refusal.
pub const RELEASE_BYTES_MAX: usize = 32;
/// See [`RELEASE_BYTES_MAX`].
pub const REASON_BYTES_MAX: usize = 240;

const _: () = assert!(FRAME_BYTES_MAX + 64 <= NET_FRAMES_RING as usize / 4);
const _: () = assert!(COMPLETION_BYTES_MAX + 64 <= BLK_COMPLETIONS_RING as usize / 4);
const _: () = assert!(BLK_COMPLETIONS_RING <= RING_BYTES_MAX && NET_FRAMES_RING <= RING_BYTES_MAX);
const _: () = assert!(
    COMPLETION_BYTES_MAX <= lockstep_protocol::limits::MAX_PAYLOAD,
    "a completion fits a record"
);
const _: () = assert!(
    FRAME_BYTES_MAX <= lockstep_protocol::limits::MAX_PAYLOAD,
    "a frame fits a record"
);
