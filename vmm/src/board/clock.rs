//! The frozen pvclock page.
//!
//! The guest computes the time from the page alone: with a multiplier of 1 and a shift of -31 whatever the TSC says adds
//! nothing, so the guest reads exactly `system_time`, which [`write_page`] moves only in windows (design: "Clock without
//! exits"). What is written comes from the log; on the side that lives, `ft/clock.rs` says what to log.

use crate::memory::GuestRam;
use lockstep_protocol::ids::GuestTime;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

/// `tsc_shift` that discards a 32-bit counter after the multiplication (struct pvclock_vcpu_time_info).
const SHIFT: i8 = -31;
const FLAG_STABLE: u8 = 1;

/// Moves the guest's time to `time`.
///
/// # Errors
/// When the page does not lie in guest memory.
pub fn write_page(memory: &GuestRam, page: GuestAddress, time: GuestTime) -> Result<(), GuestMemoryError> {
    let mut info = [0_u8; 32];
    // An even version: the page is consistent. The vCPU is stopped, so nobody can see it half written.
    info[0..4].copy_from_slice(&2_u32.to_le_bytes());
    info[16..24].copy_from_slice(&time.get().to_le_bytes());
    info[24..28].copy_from_slice(&1_u32.to_le_bytes());
    info[28] = SHIFT.to_le_bytes()[0];
    info[29] = FLAG_STABLE;
    memory.write_slice(&info, page)
}

/// The two clock MSRs of KVM, answered by us: KVM's own clock never runs (its MSRs are filtered).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PvClock {
    /// Where the guest wants its clock page, once it said so.
    page: Option<u64>,
    system_time_msr: u64,
}

/// Where the guest asks for the wall time of power-on.
pub const MSR_WALL_CLOCK: u32 = 0x4b56_4d00;
/// Where the guest says which page shows its clock, and whether it runs.
pub const MSR_SYSTEM_TIME: u32 = 0x4b56_4d01;

impl PvClock {
    /// The guest reads a clock MSR; `None` for others.
    #[must_use]
    pub fn msr_read(&self, index: u32) -> Option<u64> {
        match index {
            MSR_WALL_CLOCK => Some(0),
            MSR_SYSTEM_TIME => Some(self.system_time_msr),
            _ => None,
        }
    }

    /// The guest writes a clock MSR; false for others, and for addresses outside memory. `origin` is the wall time of
    /// power-on, `now` the time since then.
    pub fn msr_write(&mut self, index: u32, value: u64, origin: u64, now: u64, memory: &GuestRam) -> bool {
        match index {
            MSR_WALL_CLOCK => write_wall_clock(memory, GuestAddress(value & !1), origin).is_ok(),
            MSR_SYSTEM_TIME => {
                self.system_time_msr = value;
                self.page = (value & 1 == 1).then_some(value & !1);
                self.set(now, memory)
            }
            _ => false,
        }
    }

    /// The time moved; false when the guest's page lies outside its memory.
    pub fn set(&self, now: u64, memory: &GuestRam) -> bool {
        self.page
            .is_none_or(|page| write_page(memory, GuestAddress(page), GuestTime::new(now)).is_ok())
    }
}

/// Writes a `struct pvclock_wall_clock`: version, seconds, nanoseconds.
fn write_wall_clock(memory: &GuestRam, at: GuestAddress, wall: u64) -> Result<(), GuestMemoryError> {
    let seconds = u32::try_from(wall / 1_000_000_000).unwrap_or(u32::MAX);
    let nanos = u32::try_from(wall % 1_000_000_000).expect("less than a second");
    let mut clock = [0_u8; 12];
    clock[0..4].copy_from_slice(&2_u32.to_le_bytes());
    clock[4..8].copy_from_slice(&seconds.to_le_bytes());
    clock[8..12].copy_from_slice(&nanos.to_le_bytes());
    memory.write_slice(&clock, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_finds_both_times_where_it_asked_for_them() {
        let memory = GuestRam::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let mut clock = PvClock::default();
        assert!(clock.msr_write(MSR_WALL_CLOCK, 0x100, 7_000_000_009, 0, &memory));
        assert!(clock.msr_write(MSR_SYSTEM_TIME, 0x201, 0, 5, &memory));
        clock.set(42, &memory);
        let word = |at| memory.read_obj::<u32>(GuestAddress(at)).unwrap();
        assert_eq!([word(0x104), word(0x108), word(0x210)], [7, 9, 42]);
    }

    #[test]
    fn a_page_outside_memory_is_refused() {
        let memory = GuestRam::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        assert!(!PvClock::default().msr_write(MSR_SYSTEM_TIME, 0x2001, 0, 0, &memory));
    }
}
