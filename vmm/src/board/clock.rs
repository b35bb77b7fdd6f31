//! The frozen pvclock page and the host clock behind it.
//!
//! The guest computes the time from the page alone: with a multiplier of 1 and a shift of -31 whatever the TSC says adds
//! nothing, so the guest reads exactly `system_time`, which [`write_page`] moves only in windows (design: "Clock without
//! exits"). [`HostClock`] says what to write; it is used by the side that lives, never in a replay.

use lockstep_protocol::ids::GuestTime;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// `tsc_shift` that discards a 32-bit counter after the multiplication (struct pvclock_vcpu_time_info).
const SHIFT: i8 = -31;
const FLAG_STABLE: u8 = 1;

/// Moves the guest's time to `time`.
///
/// # Errors
/// When the page does not lie in guest memory.
pub fn write_page(
    memory: &GuestMemoryMmap,
    page: GuestAddress,
    time: GuestTime,
) -> Result<(), GuestMemoryError> {
    let mut info = [0_u8; 32];
    // An even version: the page is consistent. The vCPU is stopped, so nobody can see it half written.
    info[0..4].copy_from_slice(&2_u32.to_le_bytes());
    info[16..24].copy_from_slice(&time.get().to_le_bytes());
    info[24..28].copy_from_slice(&1_u32.to_le_bytes());
    info[28] = SHIFT.to_le_bytes()[0];
    info[29] = FLAG_STABLE;
    memory.write_slice(&info, page)
}

/// Guest time as this host's clock gives it: a starting point and what has passed since.
#[derive(Clone, Copy, Debug)]
pub struct HostClock {
    base: GuestTime,
    since: Instant,
}

impl HostClock {
    /// Guest time is `base` now.
    #[must_use]
    pub fn starting_at(base: GuestTime) -> Self {
        Self {
            base,
            since: Instant::now(),
        }
    }

    /// Guest time was `base` when the host's clock stood `ago` before now.
    #[must_use]
    pub fn resumed(base: GuestTime, ago: Duration) -> Self {
        let now = Instant::now();
        Self {
            base,
            since: now.checked_sub(ago).unwrap_or(now),
        }
    }

    /// Guest time now.
    #[must_use]
    pub fn now(&self) -> GuestTime {
        let passed = u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        GuestTime::new(self.base.get().saturating_add(passed))
    }
}
