//! Every bound of the network process, with the reason for it. Constants only.

use std::time::Duration;

/// Receive and transmit; one thread serves both.
pub const QUEUES: usize = 2;

/// Entries that a queue may have: what virtio-net drivers use at most.
pub const QUEUE_SIZE_MAX: usize = 1024;

/// Bytes of one vhost-user message behind its header: the vhost crate takes no more.
pub const MESSAGE_BYTES_MAX: usize = 4096;

/// Descriptors that one vhost-user message carries: one for each of the regions of its largest memory table.
pub const MESSAGE_DESCRIPTORS_MAX: usize = 32;

/// Frames read from the tap before other wake-ups get their turn.
pub const RX_BURST: usize = 256;

/// Frames sent, or orders taken, before other wake-ups get their turn.
pub const TX_BURST: usize = 256;

/// Bursts of orders or frames before the tap gets its turn although more keep coming.
pub const ROUNDS_MAX: usize = 4;

/// Buffers kept for the next frames: as many as one queue of a busy guest.
pub const POOL_FRAMES: usize = 512;

/// A buffer that one large frame has grown beyond this is not kept, so that the pool stays within 2 MiB.
pub const POOL_FRAME_BYTES: usize = 4096;

/// After going live the guest's address is announced at once and again after these times: a bridge that was just
/// joined, or whose port was just enabled, loses the first.
pub const ANNOUNCE_AGAIN: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(1000),
];
