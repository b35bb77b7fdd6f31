//! The real-time clock with its CMOS memory (MC146818), as far as Linux uses it: time, alarm, and their interrupt.
//!
//! The PC board calls it with the wall time that the log gave. The clock is never seen updating: its time moves only in
//! windows, when nobody looks. Periodic interrupts are left out; Linux makes them itself.

use crate::state::bounds;
use serde::{Deserialize, Serialize};

/// The port that selects a register; the next one is the register.
pub const INDEX: u16 = 0x70;
/// The selected register.
pub const DATA: u16 = 0x71;

const SECONDS: usize = 0;
const MINUTES: usize = 2;
const HOURS: usize = 4;
/// Seconds, minutes and hours of the alarm.
const ALARM: [usize; 3] = [1, 3, 5];
const WEEKDAY: usize = 6;
const DAY: usize = 7;
const MONTH: usize = 8;
const YEAR: usize = 9;
const STATUS_A: usize = 0x0a;
const STATUS_B: usize = 0x0b;
const STATUS_C: usize = 0x0c;
const STATUS_D: usize = 0x0d;
/// Where the ACPI tables say the century is.
pub const CENTURY: u8 = 0x32;

const B_SET: u8 = 0x80;
const B_ALARM: u8 = 0x20;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
const C_INTERRUPT: u8 = 0x80;
const C_ALARM: u8 = 0x20;
const D_VALID: u8 = 0x80;
/// An alarm register with both top bits set matches anything.
const ANY: u8 = 0xc0;

const NANOS: u64 = 1_000_000_000;
const DAY_SECONDS: i64 = 86_400;
/// No year that the registers can show is further from 1970 than this.
const SECONDS_MAX: i64 = 1 << 42;

/// The clock. `wall` is nanoseconds since 1970 everywhere.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rtc {
    #[serde(deserialize_with = "bounds::within::<0, 0x7f, _, _>")]
    selected: usize,
    #[serde(with = "serde_big_array::BigArray")]
    memory: [u8; 128],
    /// What the guest's setting of the clock added, in seconds.
    #[serde(deserialize_with = "bounds::within::<{ -SECONDS_MAX }, SECONDS_MAX, _, _>")]
    offset: i64,
    /// The second at which the alarm goes off, in the guest's time.
    #[serde(deserialize_with = "bounds::within_if_any::<{ -SECONDS_MAX }, SECONDS_MAX, _, _>")]
    alarm: Option<i64>,
}

impl Default for Rtc {
    fn default() -> Self {
        let mut memory = [0; 128];
        memory[STATUS_A] = 0x26;
        memory[STATUS_B] = B_24_HOURS;
        memory[STATUS_D] = D_VALID;
        Self {
            selected: 0,
            memory,
            offset: 0,
            alarm: None,
        }
    }
}

impl Rtc {
    /// The guest wrote `byte` to one of the two ports.
    pub fn write(&mut self, port: u16, byte: u8, wall: u64) {
        if port == INDEX {
            self.selected = usize::from(byte & 0x7f);
            return;
        }
        match self.selected {
            STATUS_C | STATUS_D => {}
            STATUS_A => self.memory[STATUS_A] = byte & 0x7f,
            STATUS_B => self.set_status_b(byte, wall),
            register => {
                self.memory[register] = byte;
                if ALARM.contains(&register) {
                    self.plan_alarm(wall);
                } else if is_time(register) && self.memory[STATUS_B] & B_SET == 0 {
                    self.take_time(wall, register);
                }
            }
        }
    }

    /// The guest reads one of the two ports.
    pub fn read(&mut self, port: u16, wall: u64) -> u8 {
        match self.selected {
            _ if port == INDEX => 0xff,
            STATUS_C => std::mem::take(&mut self.memory[STATUS_C]),
            register if is_time(register) && self.memory[STATUS_B] & B_SET == 0 => {
                self.time_register(register, wall)
            }
            register => self.memory[register],
        }
    }

    /// Whether the chip asks for an interrupt.
    #[must_use]
    pub fn line(&self) -> bool {
        self.memory[STATUS_C] & C_INTERRUPT != 0
    }

    /// At which wall time the alarm goes off next.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        u64::try_from(self.alarm? - self.offset).ok()?.checked_mul(NANOS)
    }

    /// Time moved to `wall`.
    pub fn advance(&mut self, wall: u64) {
        if self.deadline().is_some_and(|deadline| wall >= deadline) {
            self.memory[STATUS_C] |= C_INTERRUPT | C_ALARM;
            self.plan_alarm(wall);
        }
    }

    /// Finds the next second of the alarm after `wall`. Called when something changed, not when somebody asks.
    fn plan_alarm(&mut self, wall: u64) {
        let now = self.seconds(wall);
        let is_on = self.memory[STATUS_B] & (B_ALARM | B_SET) == B_ALARM;
        self.alarm = (now + 1..=now + DAY_SECONDS).find(|second| is_on && self.matches(*second));
    }

    fn set_status_b(&mut self, byte: u8, wall: u64) {
        let before = std::mem::replace(&mut self.memory[STATUS_B], byte);
        match (before & B_SET != 0, byte & B_SET != 0) {
            (false, true) => {
                for register in (0..self.memory.len()).filter(|register| is_time(*register)) {
                    self.memory[register] = self.time_register(register, wall);
                }
            }
            (true, false) => self.keep_time(wall),
            _ => {}
        }
        self.plan_alarm(wall);
    }

    /// The guest set one register of a running clock.
    fn take_time(&mut self, wall: u64, written: usize) {
        for register in (0..self.memory.len()).filter(|register| is_time(*register) && *register != written) {
            self.memory[register] = self.time_register(register, wall);
        }
        self.keep_time(wall);
    }

    /// From now on the time goes on from what the time registers hold.
    fn keep_time(&mut self, wall: u64) {
        let value = |register: usize| i64::from(self.decode(self.memory[register]));
        let year = value(usize::from(CENTURY)) * 100 + value(YEAR);
        let days = days_from_civil(year, value(MONTH), value(DAY));
        let seconds = days * DAY_SECONDS + value(HOURS) * 3600 + value(MINUTES) * 60 + value(SECONDS);
        self.offset = seconds - wall_seconds(wall);
        self.plan_alarm(wall);
    }

    fn seconds(&self, wall: u64) -> i64 {
        wall_seconds(wall) + self.offset
    }

    fn time_register(&self, register: usize, wall: u64) -> u8 {
        let seconds = self.seconds(wall);
        let (days, rest) = (seconds.div_euclid(DAY_SECONDS), seconds.rem_euclid(DAY_SECONDS));
        let (year, month, day) = civil_from_days(days);
        let value = match register {
            SECONDS => rest % 60,
            MINUTES => rest / 60 % 60,
            HOURS => rest / 3600,
            // 1970 began on a Thursday; Sunday is 1.
            WEEKDAY => (days + 4).rem_euclid(7) + 1,
            DAY => day,
            MONTH => month,
            YEAR => year.rem_euclid(100),
            _ => year / 100,
        };
        self.encode(u8::try_from(value).unwrap_or(0))
    }

    fn matches(&self, second: i64) -> bool {
        let rest = second.rem_euclid(DAY_SECONDS);
        let parts = [rest % 60, rest / 60 % 60, rest / 3600];
        ALARM.into_iter().zip(parts).all(|(register, part)| {
            let alarm = self.memory[register];
            alarm & ANY == ANY || i64::from(self.decode(alarm)) == part
        })
    }

    fn encode(&self, value: u8) -> u8 {
        if self.memory[STATUS_B] & B_BINARY != 0 {
            value
        } else {
            ((value / 10 % 10) << 4) | (value % 10)
        }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.memory[STATUS_B] & B_BINARY != 0 {
            value
        } else {
            (value >> 4).wrapping_mul(10).wrapping_add(value & 0xf)
        }
    }
}

fn is_time(register: usize) -> bool {
    matches!(register, SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR) || register == usize::from(CENTURY)
}

fn wall_seconds(wall: u64) -> i64 {
    i64::try_from(wall / NANOS).expect("2^64 nanoseconds are few seconds")
}

/// Days since 1970 of a Gregorian date; months beyond 1 to 12 count on.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let months = year * 12 + month - 3;
    let (year, month) = (months.div_euclid(12), months.rem_euclid(12));
    // The year begins in March here, so that the day that comes and goes is its last.
    let leaps = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leaps + (153 * month + 2) / 5 + day - 1 - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (year + era * 400 + later, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-23 16:32:23, a Monday.
    const WALL: u64 = 1_795_451_543 * NANOS;

    fn get(rtc: &mut Rtc, register: usize, wall: u64) -> u8 {
        rtc.write(INDEX, u8::try_from(register).unwrap(), wall);
        rtc.read(DATA, wall)
    }

    fn set(rtc: &mut Rtc, register: usize, value: u8, wall: u64) {
        rtc.write(INDEX, u8::try_from(register).unwrap(), wall);
        rtc.write(DATA, value, wall);
    }

    #[test]
    fn the_wall_time_reads_as_a_date_in_bcd() {
        let mut rtc = Rtc::default();
        let read = [0x32, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS].map(|r| get(&mut rtc, r, WALL));
        assert_eq!(read, [0x20, 0x26, 0x11, 0x23, 0x02, 0x16, 0x32, 0x23]);
    }

    #[test]
    fn a_time_that_was_set_goes_on_from_there() {
        let mut rtc = Rtc::default();
        set(&mut rtc, STATUS_B, B_SET | B_24_HOURS, WALL);
        for (register, value) in [
            (0x32, 0x20),
            (YEAR, 0x28),
            (MONTH, 0x02),
            (DAY, 0x29),
            (HOURS, 0x23),
            (MINUTES, 0x59),
            (SECONDS, 0x58),
        ] {
            set(&mut rtc, register, value, WALL);
        }
        set(&mut rtc, STATUS_B, B_24_HOURS, WALL);
        let later = WALL + 3 * NANOS;
        let read = [YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS].map(|r| get(&mut rtc, r, later));
        assert_eq!(read, [0x28, 0x03, 0x01, 0x00, 0x00, 0x01]);
    }

    #[test]
    fn an_alarm_interrupts_once_at_its_second() {
        let mut rtc = Rtc::default();
        for (register, value) in ALARM.into_iter().zip([0x30, 0x32, 0x16]) {
            set(&mut rtc, register, value, WALL);
        }
        set(&mut rtc, STATUS_B, B_24_HOURS | B_ALARM, WALL);
        assert_eq!(rtc.deadline(), Some(WALL + 7 * NANOS));
        rtc.advance(WALL + 6 * NANOS);
        assert!(!rtc.line());
        rtc.advance(WALL + 7 * NANOS);
        assert!(rtc.line());
        assert_eq!(get(&mut rtc, STATUS_C, WALL), C_INTERRUPT | C_ALARM);
        assert!(!rtc.line());
        assert_eq!(rtc.deadline(), Some(WALL + (7 + 86_400) * NANOS));
    }

    #[test]
    fn a_clock_that_selects_a_register_which_there_is_not_is_no_state() {
        let possible = Rtc::default();
        let impossible = Rtc {
            selected: 128,
            ..Rtc::default()
        };
        let decodes = |rtc| postcard::from_bytes::<Rtc>(&postcard::to_stdvec(rtc).unwrap()).is_ok();
        assert_eq!([&possible, &impossible].map(decodes), [true, false]);
    }

    #[test]
    fn days_and_dates_agree_over_centuries() {
        (-200_000..200_000).step_by(97).for_each(|days| {
            let (year, month, day) = civil_from_days(days);
            assert_eq!(days_from_civil(year, month, day), days);
        });
    }
}
