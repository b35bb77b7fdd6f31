//! How the RAM is shared out. Asked once at power-on; pure.
//!
//! The rule that keeps a heap from running out: what devices and log may take at most comes first (`log_max`), and the
//! rest is divided among sockets, keys, large commands and replies, and a reserve for what nobody counts. All of it comes
//! to the heap, never to more. As bytes are counted roughly, those who grow with what clients say ask what is free as well,
//! measured: the store, and large commands and replies. They leave alone what the log, frames on their way out and the
//! reserve may still need. So the log finds memory for every command that is admitted, and a command that deletes is not
//! refused for the memory that others have taken to store.

use crate::db::Memory;
use crate::limits::{
    COMMAND_LOGGED_MAX, COMMAND_MAX, CONNECTION_ALLOWANCE, CONNECTIONS_MAX, CONNECTIONS_MIN, GROUP_BYTES,
    KEY_MAX, LOG_HIGH_MAX, LOG_SPARE_MAX, LOG_STEP, SNAPSHOT_BYTES, SOCKET_BUFFER, VALUE_MAX,
};
use crate::store::op::OP_BYTES;
use crate::virtio::net::{OPEN_BYTES, SEND_BYTES};

/// Shares of what devices and log leave, in fourteenths. The store has the rest, about six.
const SHARES: usize = 14;
const SOCKETS_SHARE: usize = 5;
const BUFFERS_SHARE: usize = 2;
const RESERVE_SHARE: usize = 1;
/// Below this the largest commands could not be read, nor the largest values be answered.
const BUFFERS_MIN: usize = COMMAND_MAX + CONNECTION_ALLOWANCE;
/// The allowance of as many connections as there always are. With more of them it is a share: not all of them hold theirs
/// at once.
const RESERVE_MIN: usize = CONNECTIONS_MIN * CONNECTION_ALLOWANCE;

/// How many sockets a heap of so many bytes has room for.
pub fn connections(heap: usize) -> usize {
    (shared(heap) / SHARES * SOCKETS_SHARE / (2 * SOCKET_BUFFER)).clamp(CONNECTIONS_MIN, CONNECTIONS_MAX)
}

/// The bounds on everything else. `free` measures what the heap has left.
pub fn memory(heap: usize, free: fn() -> usize) -> Memory {
    let share = shared(heap) / SHARES;
    let buffers_max = (BUFFERS_SHARE * share).max(BUFFERS_MIN);
    let reserve = (RESERVE_SHARE * share).max(RESERVE_MIN);
    let others = connections(heap) * 2 * SOCKET_BUFFER + buffers_max + reserve;
    let log_high = log_high(heap);
    Memory {
        store_max: shared(heap).saturating_sub(others),
        buffers_max,
        log_high,
        free,
        reserve: reserve + SEND_BYTES + log_max(log_high),
    }
}

/// What devices and log leave.
fn shared(heap: usize) -> usize {
    heap.saturating_sub(OPEN_BYTES + SEND_BYTES + log_max(log_high(heap)))
}

fn log_high(heap: usize) -> usize {
    (heap / 32).clamp(GROUP_BYTES, LOG_HIGH_MAX)
}

/// The most that the log ever holds. A command is taken while what is on its way to the disk and what has gathered come
/// to less than `high`, or nothing is on its way; and while less than a group has gathered. The command may then need a
/// buffer for itself and for what has gathered, which is in the old one meanwhile.
const fn log_max(high: usize) -> usize {
    high + (GROUP_BYTES + COMMAND_LOGGED_MAX + LOG_STEP)
}

/// While a compaction lasts nothing is on its way and nothing gathers: one buffer is kept for that, another has some of
/// the snapshot, and moves for a value of the longest kind; the place in the store is a key, or two while it goes on.
const COMPACTION_MAX: usize =
    2 * LOG_SPARE_MAX + (SNAPSHOT_BYTES + KEY_MAX + VALUE_MAX + OP_BYTES + LOG_STEP) + 2 * KEY_MAX;

const _: () = assert!(COMPACTION_MAX <= log_max(GROUP_BYTES));

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// Heaps of all VMs that are allowed: of the smallest, the image leaves a little more than 11 MiB.
    fn heaps() -> impl Iterator<Item = usize> {
        (11 << 20..=3 << 30).step_by(999_983)
    }

    #[test]
    fn the_shares_never_come_to_more_than_the_heap() {
        for heap in heaps() {
            let memory = memory(heap, || 0);
            let sockets = connections(heap) * 2 * SOCKET_BUFFER;
            let sum = OPEN_BYTES + sockets + memory.reserve + memory.buffers_max + memory.store_max;
            assert!(sum <= heap, "{heap}: {sum}");
        }
    }

    #[test]
    fn the_reserve_holds_what_the_log_and_the_card_may_still_take() {
        for heap in heaps() {
            let memory = memory(heap, || 0);
            assert!(memory.log_high >= GROUP_BYTES);
            let log = memory.log_high + GROUP_BYTES + COMMAND_LOGGED_MAX + LOG_STEP;
            assert!(memory.reserve >= log + SEND_BYTES + RESERVE_MIN, "{heap}");
        }
    }

    #[test]
    fn the_largest_value_is_stored_read_and_appended_to_even_in_the_smallest_vm() {
        let memory = memory(11 << 20, || 0);
        assert!(memory.buffers_max >= COMMAND_MAX + 1000);
        assert!(memory.store_max >= COMMAND_MAX + 1000, "{memory:?}");
    }

    #[test]
    fn a_vm_of_64_mib_has_room_for_as_much_as_ever() {
        // Less what lies below the image, and the image.
        let heap = (64 << 20) - (4 << 20) - (768 << 10);
        let memory = memory(heap, || 0);
        let mib = [memory.store_max, memory.buffers_max].map(|bytes| bytes >> 20);
        assert_eq!((connections(heap), mib), (148, [22, 7]));
    }

    #[test]
    fn a_larger_heap_has_no_smaller_share_for_anything() {
        let shares = |heap| {
            let memory = memory(heap, || 0);
            (connections(heap), memory.buffers_max, memory.log_high)
        };
        let shares: Vec<_> = heaps().map(shares).collect();
        assert!(shares.is_sorted_by(|one, two| one.0 <= two.0 && one.1 <= two.1 && one.2 <= two.2));
    }
}
