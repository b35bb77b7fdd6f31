//! Every bound of the guest, with its reason. Read by all other files; decides nothing.

use core::time::Duration;

use crate::disk::SECTOR_BYTES;
use crate::store::op::OP_BYTES;

/// Longest value, and longest single argument.
pub const VALUE_MAX: usize = 1 << 20;
/// Longest key.
pub const KEY_MAX: usize = 64 << 10;
/// All arguments of one command together: one value of the longest kind and its key.
pub const COMMAND_MAX: usize = VALUE_MAX + KEY_MAX;
/// Most arguments of one command. Redis allows a million; their bookkeeping alone would be 8 MiB here.
pub const ARGUMENTS_MAX: usize = 64 << 10;
/// Longest text of a number that a command makes itself and stores: 64 bits and a sign.
pub const NUMBER_MAX: usize = 20;
/// Longest name that a client may give itself.
pub const NAME_MAX: usize = 64;
/// Longest line of the protocol: an inline command, or a length. Redis's own limit.
pub const LINE_MAX: usize = 64 << 10;
/// What a connection may have read ahead of the command it is at. Its socket holds more.
pub const READ_AHEAD: usize = 16 << 10;
/// With this much to send, a connection executes nothing further until its client reads.
pub const REPLIES_HIGH: usize = 32 << 10;
/// What every connection may hold without asking. The rest is shared, and counted.
pub const CONNECTION_ALLOWANCE: usize = 64 << 10;
/// Longest single reply (KEYS, MGET).
pub const REPLY_MAX: usize = 4 << 20;
/// How long a large command or reply waits for others to let go of their memory.
pub const MEMORY_WAIT_MAX: Duration = Duration::from_secs(2);

/// Buffers of a TCP connection, each way.
pub const SOCKET_BUFFER: usize = 64 << 10;
/// Most connections, however much memory there is: each is looked at in every round.
pub const CONNECTIONS_MAX: usize = 512;
/// Fewest connections worth running with.
pub const CONNECTIONS_MIN: usize = 8;

/// A group of writes is closed when it has grown to this.
pub const GROUP_BYTES: usize = 512 << 10;
/// The most that one command adds to its group: all its arguments, and for each of them a change of its own.
pub const COMMAND_LOGGED_MAX: usize = COMMAND_MAX + ARGUMENTS_MAX * OP_BYTES + NUMBER_MAX;
/// Largest batch that recovery takes for one. Those that are written are shorter.
pub const BATCH_MAX: usize = GROUP_BYTES + 4 * COMMAND_MAX;
/// Unit of the log's buffers. Whole sectors, so that there is room for a batch's padding.
pub const LOG_STEP: usize = 64 << 10;
/// The log keeps a buffer for the next group if it is not larger: what a group of small commands comes to.
pub const LOG_SPARE_MAX: usize = GROUP_BYTES + LOG_STEP;
/// With so many bytes of batches on their way and gathering, the log takes no more writes; fewer where memory is short.
/// One group beyond those on their way, so that the disk need not wait for the next.
pub const LOG_HIGH_MAX: usize = (BATCHES_OUT + 1) * GROUP_BYTES;
/// Batches of the log on their way at once. Two: while the disk writes one, the next waits for a backup's ack.
pub const BATCHES_OUT: usize = 2;
/// How much of the store one batch of a compaction carries.
pub const SNAPSHOT_BYTES: usize = 256 << 10;

/// Most rounds of hashing that one command does.
pub const HASH_ROUNDS_MAX: u64 = 10_000_000_000;
/// How many of them `HASH` does before others have their turn: about a millisecond of work.
pub const HASH_SLICE: u64 = 1 << 18;
/// How many keys with a time to live are looked at in one step of expiry.
pub const EXPIRY_STEP: usize = 64;

const _: () = assert!(
    GROUP_BYTES + COMMAND_LOGGED_MAX <= BATCH_MAX,
    "what is written is read"
);
const _: () = assert!(
    LOG_STEP.is_multiple_of(SECTOR_BYTES),
    "padding needs no room of its own"
);
