//! The board of a stock Linux guest: the chips of a PC behind their ports, the clock MSRs, and all interrupt lines.
//!
//! The machine hands it every access, and every move of the logged time by [`Pc::set_time`]; nothing else changes it.
//! Log time counts nanoseconds since 1970, so that wall time needs no input of its own; board time counts from
//! power-on. There is no PCI, no keyboard and no APIC: their ports read as all ones.

use super::PortDeed;
use super::clock::PvClock;
use super::pic::{Irq, Pic};
use super::pit::{self, Pit};
use super::power::{self, Power, Pressed};
use super::rtc::{self, Rtc};
use super::uart::{self, Uart};
use crate::memory::GuestRam;
use crate::state::bounds;
use lockstep_protocol::ids::{GuestTime, Position};
use serde::{Deserialize, Serialize};

/// The inputs of the interrupt controller that virtio devices use, in their order. All are free on a PC without PCI.
pub const DEVICE_IRQS: [Irq; 4] = [Irq::new(5), Irq::new(10), Irq::new(11), Irq::new(7)];
/// Where `rdtsc` reads from after its rewrite: `in eax, 0xf0`.
pub const TSC: u16 = 0xf0;
/// Where the hook in the guest's fault handler writes to.
pub const USER_FAULT: u16 = 0xf1;
/// Where a write of CR4 writes to after its rewrite, one port for each general register in the order of their numbers.
pub const WRITE_CR4: u16 = 0xe0;
const WRITE_CR4_LAST: u16 = WRITE_CR4 + 15;
/// The real time-stamp counter's MSR; its reads exit, so that they tell the same as [`TSC`].
pub const MSR_TSC: u32 = 0x10;

/// A general register by its number, from 0 to 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(u8);

impl Register {
    /// The register of this number.
    #[must_use]
    pub const fn new(number: u8) -> Self {
        assert!(number < 16, "there are 16 general registers");
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// What an instruction that we put into the guest's kernel asks for. It is for the vCPU to do, not for a chip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// User space faulted: the handler has just begun.
    UserFault,
    /// CR4 is to be written from this register.
    WriteCr4(Register),
}

/// All chips of the PC.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Pc {
    pic: Pic,
    pit: Pit,
    rtc: Rtc,
    uart: Uart,
    power: Power,
    clock: PvClock,
    /// The logged time of power-on, and of now.
    #[serde(deserialize_with = "bounds::within_if_any::<0, { i64::MAX }, _, _>")]
    origin: Option<u64>,
    #[serde(deserialize_with = "bounds::within::<0, { i64::MAX }, _, _>")]
    wall: u64,
    /// Set while the processor waits for an interrupt.
    pub(crate) halted: bool,
}

impl Pc {
    /// The guest wrote `data` to `port`.
    pub fn port_write(&mut self, port: u16, data: &[u8]) -> PortDeed {
        let now = self.now();
        match port {
            USER_FAULT => return PortDeed::Call(Call::UserFault),
            WRITE_CR4..=WRITE_CR4_LAST => {
                let from = Register((port & 0xf) as u8);
                return PortDeed::Call(Call::WriteCr4(from));
            }
            power::EVENTS..=power::LAST | power::RESET | power::KEYBOARD => {
                return match self.power.write(port, data) {
                    Pressed::Nothing => PortDeed::None,
                    Pressed::Off => PortDeed::PowerOff,
                    Pressed::Reset => PortDeed::Reset,
                };
            }
            _ => {}
        }
        // The old chips are on an 8-bit bus: a wide access is one to each port in turn.
        for (port, &byte) in (port..=u16::MAX).zip(data) {
            match port {
                0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => self.pic.write(port, byte),
                pit::CHANNELS..=pit::COMMAND | pit::CONTROL => self.pit.write(port, byte, now),
                rtc::INDEX | rtc::DATA => self.rtc.write(port, byte, self.wall),
                uart::BASE..=uart::LAST => self.uart.write(port - uart::BASE, byte),
                _ => {}
            }
        }
        PortDeed::None
    }

    /// The guest reads `port` into `data`. `Some` is what EDX becomes besides.
    pub fn port_read(&mut self, port: u16, data: &mut [u8], position: Position) -> Option<u32> {
        let now = self.now();
        match (port, &mut *data) {
            (TSC, [a, b, c, d]) => {
                let [low @ .., e, f, g, h] = self.counter(position).to_le_bytes();
                [*a, *b, *c, *d] = low;
                return Some(u32::from_le_bytes([e, f, g, h]));
            }
            (power::EVENTS..=power::LAST | power::KEYBOARD, data) => self.power.read(port, data),
            (_, data) => {
                for (port, byte) in (port..=u16::MAX).zip(data) {
                    *byte = match port {
                        0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => self.pic.read(port),
                        pit::CHANNELS..=pit::COMMAND | pit::CONTROL => self.pit.read(port, now),
                        rtc::INDEX | rtc::DATA => self.rtc.read(port, self.wall),
                        uart::BASE..=uart::LAST => self.uart.read(port - uart::BASE),
                        _ => 0xff,
                    };
                }
            }
        }
        None
    }

    /// The guest reads a filtered MSR.
    pub fn msr_read(&self, index: u32, position: Position) -> Option<u64> {
        if index == MSR_TSC {
            Some(self.counter(position))
        } else {
            self.clock.msr_read(index)
        }
    }

    /// The guest writes a filtered MSR; false is a fault. Setting the time-stamp counter is swallowed.
    pub fn msr_write(&mut self, index: u32, value: u64, memory: &GuestRam) -> bool {
        index == MSR_TSC
            || self
                .clock
                .msr_write(index, value, self.origin.unwrap_or(0), self.now(), memory)
    }

    /// The logged time moved: the guest's clock page shows it, and the timers see whether they are due.
    pub fn set_time(&mut self, time: GuestTime, memory: &GuestRam) {
        self.origin.get_or_insert(time.get());
        self.wall = self.wall.max(time.get());
        let now = self.now();
        self.clock.set(now, memory);
        if self.pit.advance(now) {
            self.pic.pulse(Irq::TIMER);
        }
        self.rtc.advance(self.wall);
    }

    /// The logged time at which a chip next has something to say.
    #[must_use]
    pub fn next_deadline(&self) -> Option<GuestTime> {
        let timer = self
            .pit
            .deadline()
            .map(|deadline| deadline.saturating_add(self.origin.unwrap_or(0)));
        timer
            .into_iter()
            .chain(self.rtc.deadline())
            .min()
            .map(GuestTime::new)
    }

    /// What drives each line now. Called before the processor runs on; `devices` are the virtio devices' lines.
    pub fn drive_lines(&mut self, devices: impl Iterator<Item = bool>) {
        let (serial, clock) = (self.uart.line(), self.rtc.line());
        for (irq, high) in lines(serial, clock, devices) {
            self.pic.set_line(irq, high);
        }
    }

    /// The same for interrupt controllers that are not ours.
    pub fn lines(&self, devices: impl Iterator<Item = bool>) -> impl Iterator<Item = (Irq, bool)> {
        lines(self.uart.line(), self.rtc.line(), devices)
    }

    /// Whether an interrupt waits for the processor.
    #[must_use]
    pub fn has_interrupt(&self) -> bool {
        self.pic.has_interrupt()
    }

    /// The processor takes the interrupt: its vector.
    pub fn acknowledge(&mut self) -> u8 {
        self.pic.acknowledge()
    }

    /// What the guest printed since the last call.
    pub fn take_console(&mut self) -> Vec<u8> {
        self.uart.take_output()
    }

    /// Console bytes came in (an input).
    pub fn console_input(&mut self, bytes: &[u8]) {
        self.uart.receive(bytes);
    }

    /// Board time: nanoseconds since power-on.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.wall.saturating_sub(self.origin.unwrap_or(self.wall))
    }

    /// A counter that never stands still: time moves it, and every exit does.
    #[must_use]
    pub fn counter(&self, position: Position) -> u64 {
        self.now().wrapping_add(position.get())
    }
}

/// Every line but the timer's, which is an edge.
fn lines(
    serial: bool,
    clock: bool,
    devices: impl Iterator<Item = bool>,
) -> impl Iterator<Item = (Irq, bool)> {
    [(Irq::SERIAL, serial), (Irq::CLOCK, clock)]
        .into_iter()
        .chain(DEVICE_IRQS.into_iter().zip(devices))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    const START: u64 = 1_795_451_543_000_000_000;

    fn memory() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()
    }

    fn started(memory: &GuestRam) -> Pc {
        let mut pc = Pc::default();
        pc.set_time(GuestTime::new(START), memory);
        pc
    }

    #[test]
    fn the_timer_is_due_in_logged_time_and_interrupts_when_that_time_comes() {
        let memory = memory();
        let mut pc = started(&memory);
        pc.port_write(0x43, &[0x34]);
        pc.port_write(0x40, &[0xa9]);
        pc.port_write(0x40, &[0x04]);
        let due = pc.next_deadline().unwrap();
        assert!((START + 999_000..START + 1_001_000).contains(&due.get()), "{due}");
        pc.set_time(GuestTime::new(due.get() - 1), &memory);
        assert!(!pc.has_interrupt());
        pc.set_time(due, &memory);
        assert!(pc.has_interrupt());
    }

    #[test]
    fn the_counter_never_stands_still() {
        let memory = memory();
        let mut pc = started(&memory);
        let mut read = |position| {
            let mut data = [0; 4];
            let high = pc.port_read(TSC, &mut data, Position::new(position)).unwrap();
            u64::from(high) << 32 | u64::from(u32::from_le_bytes(data))
        };
        assert!(read(7) < read(8));
    }

    #[test]
    fn pci_and_unknown_ports_read_as_all_ones() {
        let mut data = [0; 4];
        assert_eq!(Pc::default().port_read(0xcf8, &mut data, Position::ZERO), None);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn a_device_line_follows_its_device() {
        let memory = memory();
        let mut pc = started(&memory);
        pc.port_write(0x4d1, &[1 << 2]);
        pc.drive_lines([false, true].into_iter());
        assert!(pc.has_interrupt());
        pc.drive_lines([false, false].into_iter());
        assert!(!pc.has_interrupt());
    }

    #[test]
    fn switching_off_is_a_deed() {
        let mut pc = Pc::default();
        assert_eq!(pc.port_write(power::CONTROL, &[0x00, 0x34]), PortDeed::PowerOff);
        assert_eq!(pc.port_write(power::KEYBOARD, &[0xfe]), PortDeed::Reset);
    }
}
