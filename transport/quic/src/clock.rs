//! The one place that reads the pair's clock: CLOCK_BOOTTIME, which counts suspended time too. Device processes
//! read the same clock when they look at their gate. Nothing else is done here.

use lockstep_protocol::Instant;
use rustix::time::{ClockId, clock_gettime};

/// Now, on this host's clock. Never compared with a moment of another host.
pub fn now() -> Instant {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Instant::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}
