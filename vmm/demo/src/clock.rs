//! The clock that all processes of one machine share: CLOCK_BOOTTIME. The nodes stamp their events with it, the demo the
//! moment of the kill, and so the two can be compared.

use nix::time::{ClockId, clock_gettime};

/// Now, in ns since the machine booted.
pub(crate) fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME exists since Linux 2.6.39");
    let seconds = u64::try_from(now.tv_sec()).expect("time since boot is not negative");
    let nanos = u64::try_from(now.tv_nsec()).expect("a part of a second is not negative");
    seconds * 1_000_000_000 + nanos
}

/// From `since` to `until`, both of [`boot_ns`], in ms.
pub(crate) fn ms_between(since: u64, until: u64) -> f64 {
    until.saturating_sub(since) as f64 / 1e6
}
