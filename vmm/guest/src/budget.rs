//! How the RAM is shared out: sockets, keys, large commands and replies, and a reserve. Asked once at power-on; pure.

use crate::db::Memory;
use crate::limits::{CONNECTIONS_MAX, CONNECTIONS_MIN, SOCKET_BUFFER};

/// Shares of the heap, in sixteenths. What is left is for the devices' buffers, the log's groups and fragmentation.
const SOCKETS_SHARE: usize = 5;
const STORE_SHARE: usize = 6;
const BUFFERS_SHARE: usize = 2;
const RESERVE_SHARE: usize = 1;

/// How many sockets a heap of so many bytes has room for.
pub fn connections(heap: usize) -> usize {
    (heap / 16 * SOCKETS_SHARE / (2 * SOCKET_BUFFER)).clamp(CONNECTIONS_MIN, CONNECTIONS_MAX)
}

/// The bounds on everything else. `free` measures what the heap has left.
pub fn memory(heap: usize, free: fn() -> usize) -> Memory {
    let sockets = connections(heap) * 2 * SOCKET_BUFFER;
    // Memory that the sockets leave, because there are never more of them, goes to the keys.
    let unused = (heap / 16 * SOCKETS_SHARE).saturating_sub(sockets);
    Memory {
        store_max: heap / 16 * STORE_SHARE + unused,
        buffers_max: heap / 16 * BUFFERS_SHARE,
        free,
        reserve: heap / 16 * RESERVE_SHARE,
    }
}
