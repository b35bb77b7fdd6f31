//! Every bound of the disk's process, with the reason for it. Constants only.

/// Bytes of a sector, the unit of every virtio-blk address whatever the disk's own block size is.
pub const SECTOR: u64 = 512;

/// Queues that a front-end may use. One thread serves them all, so more would not be faster.
pub const QUEUES: usize = 8;

/// Entries that a queue may have: what virtio-blk drivers use at most.
pub const QUEUE_SIZE_MAX: usize = 1024;

/// Data segments of one request, as offered to drivers: with header and status they fit the smallest queue
/// that front-ends make (128 entries).
pub const SEGMENTS_MAX: u32 = 126;

/// Bytes of one segment, as offered to the driver of a protected VM: with [`SEGMENTS_MAX`] no request of an
/// honest driver has more than [`TRANSFER_MAX`] bytes of data.
pub const SEGMENT_BYTES_MAX: u32 = 8192;

/// Data bytes of one read or write in a protected VM: it travels whole, as one record of the log.
pub const TRANSFER_MAX: u32 = 1 << 20;

/// Data bytes of one read or write of a plain front-end's guest: they go straight between disk and guest memory,
/// so this bounds only how long other requests wait.
pub const PLAIN_TRANSFER_MAX: u32 = 64 << 20;

/// Ranges of one discard or write-zeroes request.
pub const RANGES_MAX: u32 = 16;

/// Sectors of one discarded range (1 GiB): one system call that only touches metadata.
pub const DISCARD_SECTORS_MAX: u32 = 1 << 21;

/// Sectors of one zeroed range (16 MiB), and of one that is discarded on a mirrored disk: where storage cannot do it by
/// itself the zeros are written out, and other requests wait meanwhile. A backup's VMM gives up after 30 s of that.
pub const ZERO_SECTORS_MAX: u32 = 1 << 15;

/// Bytes of zeros written by one system call, so that leave to write is asked for often enough.
pub const ZERO_STEP: usize = 1 << 20;

/// How often a session is worked on in one go while there is always more to do, before others get their turn.
pub const PUMP_ROUNDS: usize = 64;

/// Bytes of the disk's name that a guest may ask for.
pub const SERIAL_BYTES: usize = 20;

/// Alignment of buffers for direct I/O: as much as any storage asks for.
pub const BUFFER_ALIGNMENT: usize = 4096;

const _: () = assert!(
    SEGMENTS_MAX * SEGMENT_BYTES_MAX <= TRANSFER_MAX,
    "an honest request fits"
);
const _: () = assert!(
    (TRANSFER_MAX as usize) < lockstep_staging::limits::COMPLETION_BYTES_MAX,
    "a read fits the staging ring with its status"
);
