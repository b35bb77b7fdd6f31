//! What the device says of itself: virtio features and the configuration space.
//!
//! Used by `backend.rs` for vhost-user and for staging. It knows the disk's facts and nothing of its content.

use vhost::vhost_user::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use zerocopy::{Immutable, IntoBytes};

use crate::disk::Disk;
use crate::limits::{
    DISCARD_SECTORS_MAX, QUEUES, RANGES_MAX, SECTOR, SEGMENT_BYTES_MAX, SEGMENTS_MAX, ZERO_SECTORS_MAX,
};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Any vhost-user front-end; this process completes into the rings.
    Plain,
    /// Our VMM, over staging.
    Protected,
}

/// The virtio features that a guest may be offered.
pub fn features(disk: &Disk, service: Service) -> u64 {
    let bit = |number: u32| 1_u64 << number;
    let common = bit(VIRTIO_F_VERSION_1)
        | bit(VIRTIO_RING_F_INDIRECT_DESC)
        | bit(VIRTIO_BLK_F_SEG_MAX)
        | bit(VIRTIO_BLK_F_BLK_SIZE)
        | bit(VIRTIO_BLK_F_FLUSH);
    let writes = match disk.is_read_only() {
        true => bit(VIRTIO_BLK_F_RO),
        false => bit(VIRTIO_BLK_F_DISCARD) | bit(VIRTIO_BLK_F_WRITE_ZEROES),
    };
    let service = match service {
        Service::Plain => bit(VIRTIO_RING_F_EVENT_IDX) | bit(VIRTIO_BLK_F_MQ),
        // The VMM owns the rings and decides about interrupts; and a request travels whole, so it is bounded.
        Service::Protected => bit(VIRTIO_BLK_F_SIZE_MAX),
    };
    common | writes | service
}

/// The same for vhost-user, which has a bit of its own among them.
pub fn vhost_features(disk: &Disk, service: Service) -> u64 {
    features(disk, service) | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
}

/// Does a driver that took these features ask for a flush when it needs one?
pub fn is_flushed_by(features: u64) -> bool {
    features & 1 << VIRTIO_BLK_F_FLUSH != 0
}

/// What we speak beyond the first version of vhost-user.
pub fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK
}

/// The configuration space: `struct virtio_blk_config` of the specification, up to the last field that we fill.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C, packed)]
struct Config {
    capacity: u64,
    size_max: u32,
    seg_max: u32,
    geometry: [u8; 4],
    block_size: u32,
    topology: [u8; 8],
    writeback: u8,
    unused: u8,
    num_queues: u16,
    max_discard_sectors: u32,
    max_discard_seg: u32,
    discard_sector_alignment: u32,
    max_write_zeroes_sectors: u32,
    max_write_zeroes_seg: u32,
    write_zeroes_may_unmap: u8,
    unused1: [u8; 3],
}

/// The configuration space as bytes.
pub fn config(disk: &Disk) -> Vec<u8> {
    let sectors_per_block = disk.block_size() / SECTOR as u32;
    Config {
        capacity: disk.bytes() / SECTOR,
        size_max: SEGMENT_BYTES_MAX,
        seg_max: SEGMENTS_MAX,
        geometry: [0; 4],
        block_size: disk.block_size(),
        topology: [0; 8],
        writeback: 0,
        unused: 0,
        num_queues: QUEUES as u16,
        // What is discarded on a mirrored disk is zeroed.
        max_discard_sectors: match disk.is_mirrored() {
            true => ZERO_SECTORS_MAX,
            false => DISCARD_SECTORS_MAX,
        },
        max_discard_seg: RANGES_MAX,
        discard_sector_alignment: sectors_per_block,
        max_write_zeroes_sectors: ZERO_SECTORS_MAX,
        max_write_zeroes_seg: RANGES_MAX,
        write_zeroes_may_unmap: 1,
        unused1: [0; 3],
    }
    .as_bytes()
    .to_vec()
}

/// The part of the configuration space that a front-end asks for. What lies behind our last field is zero, so that
/// a front-end that knows more fields gets an answer too.
pub fn config_part(disk: &Disk, offset: u32, size: u32) -> Vec<u8> {
    let config = config(disk);
    let (offset, size) = (offset as usize, size as usize);
    // vhost-user itself allows no more than 256 bytes; this is the bound for whoever calls with something else.
    let size = size.min(lockstep_staging::limits::CONFIG_BYTES_MAX);
    config
        .into_iter()
        .skip(offset)
        .chain(std::iter::repeat(0))
        .take(size)
        .collect()
}

const _: () = assert!(size_of::<Config>() == 60, "write_zeroes_may_unmap lies at 56");
