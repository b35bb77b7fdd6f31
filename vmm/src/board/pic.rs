//! The pair of 8259 interrupt controllers of a PC, master and slave, level and edge triggered.
//!
//! The PC board passes port accesses and drives the lines; when the vCPU can take an interrupt it asks for the vector
//! with [`Pic::acknowledge`]. Nothing here knows which device is behind a line. What stock Linux does not use (8080
//! mode, single mode) is left out.

use crate::state::bounds;
use serde::{Deserialize, Serialize};

/// Ports: command and data of each chip, and their edge/level registers.
pub const MASTER: u16 = 0x20;
/// Command port of the slave.
pub const SLAVE: u16 = 0xa0;
/// First of the two edge/level registers.
pub const EDGE_LEVEL: u16 = 0x4d0;

/// The line of the master that the slave drives.
const CASCADE: u8 = 2;
/// What a chip answers when the request went away before it was acknowledged.
const SPURIOUS: u8 = 7;
/// Lines that can be level triggered: not the timer, the keyboard and the cascade; not the clock and the FPU.
const LEVEL_LINES: [u8; 2] = [0xf8, 0xde];

/// One input of the pair, 0 to 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Irq(u8);

impl Irq {
    /// The timer.
    pub const TIMER: Self = Self(0);
    /// COM1.
    pub const SERIAL: Self = Self(4);
    /// The real-time clock.
    pub const CLOCK: Self = Self(8);

    /// Input `number` of the pair; 15 is the last.
    #[must_use]
    pub const fn new(number: u8) -> Self {
        assert!(number < 16, "there are 16 inputs");
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// Both chips.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Pic {
    master: Chip,
    slave: Chip,
}

impl Pic {
    /// A device drives its line.
    pub fn set_line(&mut self, irq: Irq, high: bool) {
        let chip = if irq.0 < 8 {
            &mut self.master
        } else {
            &mut self.slave
        };
        chip.set_line(irq.0 % 8, high);
        self.cascade();
    }

    /// A device gives a short pulse.
    pub fn pulse(&mut self, irq: Irq) {
        self.set_line(irq, true);
        self.set_line(irq, false);
    }

    /// Whether the processor's interrupt pin is high.
    #[must_use]
    pub fn has_interrupt(&self) -> bool {
        self.master.pending().is_some()
    }

    /// The processor takes the interrupt: its vector.
    pub fn acknowledge(&mut self) -> u8 {
        let line = self.master.acknowledge();
        let vector = if line == CASCADE {
            let line = self.slave.acknowledge();
            self.slave.base + line
        } else {
            self.master.base + line
        };
        self.cascade();
        vector
    }

    /// The guest wrote `byte` to one of the pair's ports.
    pub fn write(&mut self, port: u16, byte: u8) {
        match port {
            MASTER => self.master.command(byte),
            SLAVE => self.slave.command(byte),
            EDGE_LEVEL => self.master.level = byte & LEVEL_LINES[0],
            _ if port == EDGE_LEVEL + 1 => self.slave.level = byte & LEVEL_LINES[1],
            _ if port == MASTER + 1 => self.master.data(byte),
            _ => self.slave.data(byte),
        }
        self.cascade();
    }

    /// The guest reads one of the pair's ports.
    pub fn read(&mut self, port: u16) -> u8 {
        let byte = match port {
            MASTER => self.master.status(),
            SLAVE => self.slave.status(),
            EDGE_LEVEL => self.master.level,
            _ if port == EDGE_LEVEL + 1 => self.slave.level,
            _ if port == MASTER + 1 => self.master.mask,
            _ => self.slave.mask,
        };
        self.cascade();
        byte
    }

    fn cascade(&mut self) {
        let bit = 1 << CASCADE;
        if self.slave.pending().is_some() {
            self.master.requests |= bit;
        } else {
            self.master.requests &= !bit;
        }
    }
}

/// Which initialization word the data port expects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Expects {
    #[default]
    Mask,
    Base,
    Wiring,
    Mode,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Chip {
    requests: u8,
    in_service: u8,
    mask: u8,
    lines: u8,
    level: u8,
    /// The vector of line 0; its last three bits are zero.
    #[serde(deserialize_with = "bounds::within::<0, 0xf8, _, _>")]
    base: u8,
    /// The line with the highest priority.
    #[serde(deserialize_with = "bounds::within::<0, 7, _, _>")]
    first: u8,
    expects: Expects,
    wants_mode: bool,
    shows_in_service: bool,
    polls: bool,
    special_mask: bool,
    nested: bool,
    auto_end: bool,
    rotates: bool,
}

impl Chip {
    fn set_line(&mut self, line: u8, high: bool) {
        let bit = 1 << line;
        let was = self.lines & bit != 0;
        self.lines = if high { self.lines | bit } else { self.lines & !bit };
        if self.level & bit != 0 {
            self.requests = if high {
                self.requests | bit
            } else {
                self.requests & !bit
            };
        } else if high && !was {
            self.requests |= bit;
        }
    }

    /// The line that asks for the processor now: unmasked, and of higher priority than everything in service.
    fn pending(&self) -> Option<u8> {
        let line = self.highest(self.requests & !self.mask)?;
        let mut blocking = self.in_service;
        if self.special_mask {
            blocking &= !self.mask;
        }
        if self.nested {
            blocking &= !(1 << CASCADE);
        }
        let rank = |line: u8| line.wrapping_sub(self.first) % 8;
        let free = self.highest(blocking).is_none_or(|busy| rank(line) < rank(busy));
        free.then_some(line)
    }

    fn highest(&self, lines: u8) -> Option<u8> {
        (0..8)
            .map(|rank| (self.first + rank) % 8)
            .find(|line| lines & 1 << line != 0)
    }

    fn acknowledge(&mut self) -> u8 {
        let Some(line) = self.pending() else {
            return SPURIOUS;
        };
        let bit = 1 << line;
        if self.level & bit == 0 {
            self.requests &= !bit;
        }
        if !self.auto_end {
            self.in_service |= bit;
        } else if self.rotates {
            self.first = (line + 1) % 8;
        }
        line
    }

    fn command(&mut self, byte: u8) {
        if byte & 0x10 != 0 {
            self.initialize(byte & 1 != 0);
        } else if byte & 0x08 != 0 {
            self.polls = byte & 0x04 != 0;
            if byte & 0x02 != 0 {
                self.shows_in_service = byte & 1 != 0;
            }
            if byte & 0x40 != 0 {
                self.special_mask = byte & 0x20 != 0;
            }
        } else {
            self.end(byte >> 5, byte & 7);
        }
    }

    fn initialize(&mut self, wants_mode: bool) {
        *self = Self {
            lines: self.lines,
            level: self.level,
            requests: self.lines & self.level,
            base: self.base,
            expects: Expects::Base,
            wants_mode,
            ..Self::default()
        };
    }

    /// The end-of-interrupt commands.
    fn end(&mut self, what: u8, line: u8) {
        match what {
            0 | 4 => self.rotates = what == 4,
            1 | 5 => {
                let Some(ended) = self.highest(self.in_service) else {
                    return;
                };
                self.in_service &= !(1 << ended);
                if what == 5 {
                    self.first = (ended + 1) % 8;
                }
            }
            3 => self.in_service &= !(1 << line),
            6 => self.first = (line + 1) % 8,
            7 => {
                self.in_service &= !(1 << line);
                self.first = (line + 1) % 8;
            }
            _ => {}
        }
    }

    fn data(&mut self, byte: u8) {
        match self.expects {
            Expects::Mask => self.mask = byte,
            Expects::Base => {
                self.base = byte & 0xf8;
                self.expects = Expects::Wiring;
            }
            Expects::Wiring => {
                self.expects = if self.wants_mode {
                    Expects::Mode
                } else {
                    Expects::Mask
                }
            }
            Expects::Mode => {
                self.nested = byte & 0x10 != 0;
                self.auto_end = byte & 0x02 != 0;
                self.expects = Expects::Mask;
            }
        }
    }

    fn status(&mut self) -> u8 {
        if std::mem::take(&mut self.polls) {
            return self.pending().map_or(0, |_| self.acknowledge() | 0x80);
        }
        if self.shows_in_service {
            self.in_service
        } else {
            self.requests
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux sets the pair up: vectors from 0x30, everything unmasked.
    fn pic() -> Pic {
        let mut pic = Pic::default();
        for (port, base) in [(MASTER, 0x30), (SLAVE, 0x38)] {
            pic.write(port, 0x11);
            [base, 0x04, 0x01, 0x00]
                .into_iter()
                .for_each(|byte| pic.write(port + 1, byte));
        }
        pic
    }

    #[test]
    fn an_edge_is_remembered_until_it_is_acknowledged() {
        let mut pic = pic();
        pic.pulse(Irq::TIMER);
        assert!(pic.has_interrupt());
        assert_eq!(pic.acknowledge(), 0x30);
        assert!(!pic.has_interrupt());
    }

    #[test]
    fn a_line_in_service_blocks_itself_and_lower_ones_until_its_end() {
        let mut pic = pic();
        pic.pulse(Irq::new(3));
        pic.acknowledge();
        pic.pulse(Irq::new(4));
        assert!(!pic.has_interrupt());
        pic.pulse(Irq::TIMER);
        assert_eq!(pic.acknowledge(), 0x30);
        pic.write(MASTER, 0x60);
        assert!(!pic.has_interrupt());
        pic.write(MASTER, 0x63);
        assert_eq!(pic.acknowledge(), 0x34);
    }

    #[test]
    fn a_level_asks_again_until_the_device_lets_go() {
        let mut pic = pic();
        pic.write(EDGE_LEVEL + 1, 1 << 2);
        pic.set_line(Irq::new(10), true);
        assert_eq!(pic.acknowledge(), 0x3a);
        pic.write(SLAVE, 0x62);
        pic.write(MASTER, 0x62);
        assert!(pic.has_interrupt());
        pic.set_line(Irq::new(10), false);
        assert!(!pic.has_interrupt());
    }

    #[test]
    fn a_masked_line_waits() {
        let mut pic = pic();
        pic.write(MASTER + 1, 0x01);
        pic.pulse(Irq::TIMER);
        assert!(!pic.has_interrupt());
        pic.write(MASTER + 1, 0x00);
        assert!(pic.has_interrupt());
    }

    #[test]
    fn a_request_that_went_away_is_spurious() {
        let mut pic = pic();
        pic.write(EDGE_LEVEL, 1 << 5);
        pic.set_line(Irq::new(5), true);
        pic.set_line(Irq::new(5), false);
        assert_eq!(pic.acknowledge(), 0x37);
        assert_eq!(pic.read(MASTER), 0);
    }

    #[test]
    fn a_plain_end_is_for_the_highest_line_in_service() {
        let mut pic = pic();
        pic.pulse(Irq::new(4));
        pic.acknowledge();
        pic.pulse(Irq::TIMER);
        pic.acknowledge();
        pic.write(MASTER, 0x20);
        pic.write(MASTER, 0x0b);
        assert_eq!(pic.read(MASTER), 1 << 4);
    }

    #[test]
    fn the_mask_reads_back() {
        let mut pic = pic();
        pic.write(SLAVE + 1, 0xa5);
        assert_eq!(pic.read(SLAVE + 1), 0xa5);
    }
}
