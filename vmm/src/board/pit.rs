//! The 8254 timer: channel 0 interrupts, channel 2 is read back through port 0x61, channel 1 counts and does nothing.
//!
//! The PC board calls it with the board's time on every access and whenever that time moves. The chip never looks at a
//! clock: [`Pit::deadline`] says at which time it next has something to say, [`Pit::advance`] whether it did.

use crate::state::bounds;
use serde::{Deserialize, Serialize};

/// First port: channel 0.
pub const CHANNELS: u16 = 0x40;
/// The command port.
pub const COMMAND: u16 = 0x43;
/// Gate and output of channel 2, and the speaker.
pub const CONTROL: u16 = 0x61;

/// The input clock in Hz.
const HERTZ: u128 = 1_193_182;
const NANOS: u128 = 1_000_000_000;

/// Nanoseconds of board time.
type Nanos = u64;

/// The chip, and the port that drives its channel 2.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pit {
    channels: [Channel; 3],
    control: u8,
    refresh: bool,
}

impl Default for Pit {
    /// As firmware leaves it: channel 0 runs, with its longest period. Kernels wait for it to count.
    fn default() -> Self {
        let timer = Channel {
            mode: 3,
            loaded: true,
            ..Channel::default()
        };
        Self {
            channels: [timer, Channel::default(), Channel::default()],
            control: 0,
            refresh: false,
        }
    }
}

impl Pit {
    /// The guest wrote `byte` to one of the chip's ports.
    pub fn write(&mut self, port: u16, byte: u8, now: Nanos) {
        match port {
            COMMAND => self.command(byte, now),
            CONTROL => {
                let opened = byte & !self.control & 1 != 0;
                self.control = byte & 3;
                if opened {
                    self.channels[2].start = now;
                }
            }
            _ => self.channels[usize::from((port - CHANNELS) % 3)].write(byte, now),
        }
    }

    /// The guest reads one of the chip's ports.
    pub fn read(&mut self, port: u16, now: Nanos) -> u8 {
        match port {
            COMMAND => 0xff,
            CONTROL => {
                // Memory refresh toggles a bit that old programs count; here it does so with every look.
                self.refresh = !self.refresh;
                self.control | u8::from(self.refresh) << 4 | u8::from(self.channels[2].output(now)) << 5
            }
            _ => self.channels[usize::from((port - CHANNELS) % 3)].read(now),
        }
    }

    /// When channel 0 interrupts next.
    #[must_use]
    pub fn deadline(&self) -> Option<Nanos> {
        self.channels[0].deadline()
    }

    /// Time moved to `now`: whether channel 0 interrupts. Periods that passed unseen are one interrupt.
    pub fn advance(&mut self, now: Nanos) -> bool {
        self.channels[0].advance(now)
    }

    fn command(&mut self, byte: u8, now: Nanos) {
        if byte >> 6 == 3 {
            // Read back: latch counts, states, or both, of several channels.
            for (_, channel) in (1..)
                .zip(&mut self.channels)
                .filter(|(bit, _)| byte >> bit & 1 != 0)
            {
                if byte & 0x20 == 0 {
                    channel.latch(now);
                }
                if byte & 0x10 == 0 {
                    channel.latched_state = Some(channel.state(now));
                }
            }
            return;
        }
        let channel = &mut self.channels[usize::from(byte >> 6)];
        match byte >> 4 & 3 {
            0 => channel.latch(now),
            access => channel.set_mode(Access::from_bits(access), byte >> 1 & 7),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    Low,
    High,
    #[default]
    Both,
}

impl Access {
    fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::Low,
            2 => Self::High,
            _ => Self::Both,
        }
    }

    fn bits(self) -> u8 {
        match self {
            Self::Low => 1,
            Self::High => 2,
            Self::Both => 3,
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Channel {
    #[serde(deserialize_with = "bounds::within::<0, 5, _, _>")]
    mode: u8,
    access: Access,
    /// 0 stands for 65536.
    reload: u16,
    /// When the count was loaded; nothing counts before that.
    start: Nanos,
    loaded: bool,
    /// Terminal counts that were signalled since then.
    signalled: u64,
    low: Option<u8>,
    high_next: bool,
    latched: Option<u16>,
    latched_state: Option<u8>,
}

impl Channel {
    fn set_mode(&mut self, access: Access, mode: u8) {
        // Modes 6 and 7 are other spellings of 2 and 3.
        let mode = if mode > 5 { mode - 4 } else { mode };
        *self = Self {
            mode,
            access,
            reload: self.reload,
            start: self.start,
            ..Self::default()
        };
    }

    fn write(&mut self, byte: u8, now: Nanos) {
        let reload = match (self.access, self.low.take()) {
            (Access::Low, _) => u16::from(byte),
            (Access::High, _) => u16::from(byte) << 8,
            (Access::Both, None) => {
                self.low = Some(byte);
                return;
            }
            (Access::Both, Some(low)) => u16::from_le_bytes([low, byte]),
        };
        (self.reload, self.start, self.loaded, self.signalled) = (reload, now, true, 0);
    }

    fn read(&mut self, now: Nanos) -> u8 {
        if let Some(state) = self.latched_state.take() {
            return state;
        }
        let [low, high] = self.latched.unwrap_or_else(|| self.count(now)).to_le_bytes();
        let (byte, last) = match self.access {
            Access::Low => (low, true),
            Access::High => (high, true),
            Access::Both => {
                self.high_next = !self.high_next;
                if self.high_next {
                    (low, false)
                } else {
                    (high, true)
                }
            }
        };
        if last {
            self.latched = None;
        }
        byte
    }

    fn latch(&mut self, now: Nanos) {
        if self.latched.is_none() {
            self.latched = Some(self.count(now));
        }
    }

    fn state(&self, now: Nanos) -> u8 {
        u8::from(self.output(now)) << 7
            | u8::from(!self.loaded) << 6
            | self.access.bits() << 4
            | self.mode << 1
    }

    fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    fn period(&self) -> u64 {
        if self.reload == 0 {
            0x1_0000
        } else {
            u64::from(self.reload)
        }
    }

    /// Ticks of the input clock since the count was loaded.
    fn ticks(&self, now: Nanos) -> u64 {
        let passed = u128::from(now.saturating_sub(self.start)) * HERTZ / NANOS;
        u64::try_from(passed).unwrap_or(u64::MAX)
    }

    fn count(&self, now: Nanos) -> u16 {
        let (ticks, period) = (self.ticks(now), self.period());
        let count = match self.mode {
            2 => period - ticks % period,
            3 => period - (2 * ticks) % period,
            _ => period.wrapping_sub(ticks),
        };
        u16::try_from(count & 0xffff).expect("masked to 16 bits")
    }

    fn output(&self, now: Nanos) -> bool {
        let (ticks, period) = (self.ticks(now), self.period());
        match self.mode {
            3 => ticks % period < period.div_ceil(2),
            2 | 4 | 5 => true,
            _ => self.loaded && ticks >= period,
        }
    }

    fn deadline(&self) -> Option<Nanos> {
        if !self.loaded || (self.signalled > 0 && !self.is_periodic()) {
            return None;
        }
        let ticks = u128::from(self.period()) * (u128::from(self.signalled) + 1);
        let after = (ticks * NANOS).div_ceil(HERTZ);
        Some(
            self.start
                .saturating_add(u64::try_from(after).unwrap_or(u64::MAX)),
        )
    }

    fn advance(&mut self, now: Nanos) -> bool {
        let due = self.deadline().is_some_and(|deadline| now >= deadline);
        if due {
            self.signalled = self.ticks(now) / self.period();
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Nanos = 1_000_000;

    fn programmed(command: u8, count: u16, now: Nanos) -> Pit {
        let mut pit = Pit::default();
        pit.write(COMMAND, command, now);
        count
            .to_le_bytes()
            .into_iter()
            .for_each(|byte| pit.write(CHANNELS, byte, now));
        pit
    }

    #[test]
    fn a_one_shot_fires_once_at_its_deadline() {
        let mut pit = programmed(0x38, 11932, 5 * MS);
        let deadline = pit.deadline().unwrap();
        assert!((15 * MS..15 * MS + 2000).contains(&deadline), "{deadline}");
        assert!(!pit.advance(deadline - 1));
        assert!(pit.advance(deadline));
        assert!(!pit.advance(deadline + 100 * MS));
        assert_eq!(pit.deadline(), None);
    }

    #[test]
    fn a_period_fires_again_and_again_without_drift() {
        let mut pit = programmed(0x34, 4773, 0);
        let last = (0..250).fold(0, |_, _| {
            let deadline = pit.deadline().unwrap();
            assert!(pit.advance(deadline));
            deadline
        });
        assert_eq!(last, 250 * 4773 * 1_000_000_000_u64 / 1_193_182 + 1);
    }

    #[test]
    fn periods_that_passed_unseen_are_one_interrupt() {
        let mut pit = programmed(0x34, 4773, 0);
        assert!(pit.advance(41 * MS));
        assert!(!pit.advance(41 * MS + 1));
        assert!(pit.advance(45 * MS));
    }

    #[test]
    fn a_mode_without_a_count_never_fires() {
        let mut pit = programmed(0x34, 4773, 0);
        pit.write(COMMAND, 0x30, MS);
        assert_eq!(pit.deadline(), None);
    }

    #[test]
    fn a_latched_count_does_not_move() {
        let mut pit = programmed(0x34, 0xffff, 0);
        pit.write(COMMAND, 0x00, 0);
        assert_eq!([pit.read(CHANNELS, MS), pit.read(CHANNELS, 2 * MS)], [0xff, 0xff]);
        assert_ne!(
            [pit.read(CHANNELS, 3 * MS), pit.read(CHANNELS, 3 * MS)],
            [0xff, 0xff]
        );
    }

    #[test]
    fn channel_two_shows_its_output_at_the_control_port() {
        let mut pit = Pit::default();
        pit.write(CONTROL, 0x01, 0);
        pit.write(COMMAND, 0xb0, 0);
        [0x9c, 0x2e]
            .into_iter()
            .for_each(|byte| pit.write(CHANNELS + 2, byte, 0));
        assert_eq!(pit.read(CONTROL, 9 * MS) & 0x20, 0);
        assert_eq!(pit.read(CONTROL, 11 * MS) & 0x20, 0x20);
    }
}
