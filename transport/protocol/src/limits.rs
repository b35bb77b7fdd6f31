//! Every bound of the protocol, each with its reason. Full means push back, never grow. Constants only.

use std::time::Duration;

/// The version of everything that peers say. Peers with different versions refuse each other.
pub const PROTOCOL_VERSION: u16 = 1;

/// The longest name of a host: fits a label in logs and the arbiter's register.
pub const MAX_NODE_NAME: usize = 32;

/// The longest payload of one record: the largest disk transfer the board offers (1 MiB) with its status
/// byte, or a 64 KiB frame with its virtio header, and room to spare.
pub const MAX_PAYLOAD: usize = (1 << 20) + 4096;

/// The longest head of an encoded record: tag, position, device, queue, head and length, or power-on's seed.
pub const MAX_RECORD_HEAD: usize = 48;

/// The longest message on a control, ack or heartbeat stream, its head included.
pub const MAX_MESSAGE: usize = 1024;

/// The longest sentence a peer may give as its reason; the rest is cut off.
pub const MAX_SENTENCE: usize = 480;

/// Hashes of pages in one message of a census: as many as fit.
pub const CENSUS_PAGES: usize = 120;

/// Pages of a VM that a census may have: 3 GiB of them.
pub const CENSUS_MAX: usize = 3 << 18;

/// Pieces that a delta may have however small the machine is. That of a larger machine may have as many as weigh what its pages
/// may: a piece costs memory even when it is empty.
pub const DELTA_PIECES_FEW: usize = 16;

/// How long a backup may take to be healed; all that time outputs wait. A census of the largest VM takes some seconds.
pub const HEAL_MAX: Duration = Duration::from_secs(10);

/// The longest release name in a hello.
pub const MAX_RELEASE: usize = 64;

/// Log bytes that may be unacked before the primary's vCPU waits in its window.
pub const LOG_WINDOW_BYTES: u64 = 8 << 20;

/// Records that may be unacked before the primary's vCPU waits in its window. Bounds what a takeover may
/// still have to replay as well as memory.
pub const LOG_WINDOW_RECORDS: u64 = 32_768;

/// A backup acks at the latest when this part of the window has come, whether an output waits for it or not: far from full, and
/// more than a busy guest takes in between two outputs.
pub const ACK_PARTS: u64 = 32;

/// The window is accounted in steps of this many log bytes: fine against the window, cheap to remember.
pub const MILESTONE_BYTES: u64 = 4096;

/// Who waited because something was full waits until no more than this share of it, in eighths, is in use:
/// going on at the first free byte would cost a wake-up for each record.
pub const RESUME_EIGHTHS: u64 = 6;

/// The buffer that records are encoded into grows by pieces of this size.
pub const OUTGOING_BYTES: usize = 64 << 10;

/// Log bytes a backup holds undelivered before it stops reading the stream.
pub const BACKLOG_BYTES: usize = 8 << 20;

/// Records a backup holds undelivered before it stops reading the stream.
pub const BACKLOG_RECORDS: usize = 32_768;

/// Records of lag below which the primary runs at full speed. A takeover replays this much in well under
/// the time-out even where an exit costs 30 us.
pub const SLOW_ABOVE_RECORDS: u64 = 1024;

/// Records of lag at which the slowdown has reached its height.
pub const SLOW_FULL_RECORDS: u64 = 8192;

/// What each window of the primary waits at the height of the slowdown: far more than a window costs the
/// backup, so that the lag falls.
pub const MAX_SLOWDOWN: Duration = Duration::from_millis(1);

/// The shortest heartbeat interval: below this the heartbeats themselves are the load.
pub const MIN_HEARTBEAT: Duration = Duration::from_millis(1);

/// The longest time-out: nobody waits longer than this for a host that is gone.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// A lease is waited for this fraction longer than it lasts: two clocks may drift apart by that much.
pub const LEASE_MARGIN_DIVISOR: u32 = 8;

/// How long to wait before asking an arbiter again that could not be asked.
pub const CLAIM_RETRY: Duration = Duration::from_millis(50);

/// Outputs one device process may hold.
pub const MAX_HELD_OUTPUTS: usize = 4096;

/// Bytes of output one device process may hold.
pub const MAX_HELD_BYTES: usize = 16 << 20;

const _: () = assert!(
    MAX_PAYLOAD as u64 <= LOG_WINDOW_BYTES / 4,
    "a window holds several of the largest records"
);
const _: () = assert!(
    MAX_PAYLOAD <= BACKLOG_BYTES / 4,
    "a backlog holds several of the largest records"
);
const _: () = assert!(SLOW_ABOVE_RECORDS < SLOW_FULL_RECORDS, "the slowdown rises");
const _: () = assert!(
    SLOW_FULL_RECORDS < LOG_WINDOW_RECORDS,
    "the primary is slowed before it is stopped"
);
const _: () = assert!(
    MAX_RELEASE + 2 * MAX_NODE_NAME + 256 < MAX_MESSAGE,
    "a hello fits"
);
const _: () = assert!(MAX_SENTENCE + 32 < MAX_MESSAGE, "a sentence fits");
const _: () = assert!(8 * CENSUS_PAGES + 32 < MAX_MESSAGE, "a piece of a census fits");
