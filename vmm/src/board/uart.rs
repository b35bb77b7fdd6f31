//! A 16550A: bytes out at once, bytes in from a bounded queue, and the interrupts that Linux drives it by.
//! The board calls it on port accesses; it prints nothing itself.

use crate::state::bounds;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// First port of COM1.
pub const BASE: u16 = 0x3f8;
/// Last port of COM1.
pub const LAST: u16 = 0x3ff;

/// What the guest may print before somebody takes it; older bytes go first.
const OUTPUT_MAX: usize = 64 * 1024;
/// What may wait for the guest to read; later bytes are lost, as on a real line.
pub const INPUT_MAX: usize = 4096;

const IER_RECEIVED: u8 = 0x01;
const IER_EMPTY: u8 = 0x02;
const IIR_NONE: u8 = 0x01;
const IIR_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_FIFO: u8 = 0xc0;
const FCR_ENABLE: u8 = 0x01;
const FCR_CLEAR_INPUT: u8 = 0x02;
const LSR_TRANSMITTER_EMPTY: u8 = 0x60;
const LSR_DATA_READY: u8 = 0x01;
const LCR_DIVISOR_LATCH: u8 = 0x80;
const MCR_INTERRUPTS: u8 = 0x08;
const MCR_LOOP: u8 = 0x10;
/// Carrier, ready, clear to send.
const MSR_CONNECTED: u8 = 0xb0;

/// The registers that read back, and both directions' bytes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Uart {
    interrupt_enable: u8,
    fifo: bool,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
    /// The transmitter became empty and nobody was told yet.
    emptied: bool,
    #[serde(deserialize_with = "bounds::no_longer::<OUTPUT_MAX, _, _, _>")]
    output: Vec<u8>,
    #[serde(deserialize_with = "bounds::no_longer::<INPUT_MAX, _, _, _>")]
    input: VecDeque<u8>,
}

impl Uart {
    /// The guest wrote `byte` to register `offset`.
    pub fn write(&mut self, offset: u16, byte: u8) {
        let latch = self.line_control & LCR_DIVISOR_LATCH != 0;
        match offset {
            0 | 1 if latch => self.divisor[usize::from(offset)] = byte,
            0 => self.transmit(byte),
            1 => {
                // The transmitter is always empty: wanting to know is news enough.
                self.emptied |= byte & !self.interrupt_enable & IER_EMPTY != 0;
                self.interrupt_enable = byte & 0x0f;
            }
            2 => {
                self.fifo = byte & FCR_ENABLE != 0;
                if byte & FCR_CLEAR_INPUT != 0 {
                    self.input.clear();
                }
            }
            3 => self.line_control = byte,
            4 => self.modem_control = byte & 0x1f,
            7 => self.scratch = byte,
            _ => {}
        }
    }

    /// The guest reads register `offset`.
    pub fn read(&mut self, offset: u16) -> u8 {
        let latch = self.line_control & LCR_DIVISOR_LATCH != 0;
        match offset {
            0 | 1 if latch => self.divisor[usize::from(offset)],
            0 => self.input.pop_front().unwrap_or(0),
            1 => self.interrupt_enable,
            2 => self.identify(),
            3 => self.line_control,
            4 => self.modem_control,
            5 if self.input.is_empty() => LSR_TRANSMITTER_EMPTY,
            5 => LSR_TRANSMITTER_EMPTY | LSR_DATA_READY,
            6 => self.modem_status(),
            _ => self.scratch,
        }
    }

    /// Whether the chip asks for an interrupt.
    #[must_use]
    pub fn line(&self) -> bool {
        self.modem_control & MCR_INTERRUPTS != 0 && self.reason() != IIR_NONE
    }

    /// Bytes arrived on the line.
    pub fn receive(&mut self, bytes: &[u8]) {
        let room = INPUT_MAX - self.input.len();
        self.input.extend(bytes.iter().take(room));
    }

    /// Everything printed since the last call.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    fn transmit(&mut self, byte: u8) {
        self.emptied = true;
        if self.modem_control & MCR_LOOP != 0 {
            return self.receive(&[byte]);
        }
        if self.output.len() == OUTPUT_MAX {
            self.output.drain(..OUTPUT_MAX / 2);
        }
        self.output.push(byte);
    }

    fn reason(&self) -> u8 {
        if self.interrupt_enable & IER_RECEIVED != 0 && !self.input.is_empty() {
            IIR_RECEIVED
        } else if self.interrupt_enable & IER_EMPTY != 0 && self.emptied {
            IIR_EMPTY
        } else {
            IIR_NONE
        }
    }

    /// Says why it interrupts; "empty" is said once.
    fn identify(&mut self) -> u8 {
        let reason = self.reason();
        self.emptied &= reason != IIR_EMPTY;
        if self.fifo { reason | IIR_FIFO } else { reason }
    }

    /// In loop mode the modem's wires are our own: Linux tests the chip with them.
    fn modem_status(&self) -> u8 {
        if self.modem_control & MCR_LOOP == 0 {
            return MSR_CONNECTED;
        }
        let wires = self.modem_control;
        (wires & 0x02) << 3 | (wires & 0x01) << 5 | (wires & 0x04) << 4 | (wires & 0x08) << 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_prints_for_ever_keeps_only_the_newest_bytes() {
        let mut uart = Uart::default();
        (0..3 * OUTPUT_MAX).for_each(|_| uart.write(0, b'x'));
        assert!(uart.take_output().len() <= OUTPUT_MAX);
    }

    #[test]
    fn input_that_nobody_reads_stops_at_its_limit() {
        let mut uart = Uart::default();
        uart.receive(&[b'a'; 2 * INPUT_MAX]);
        assert_eq!(uart.input.len(), INPUT_MAX);
        assert_eq!(uart.read(5) & LSR_DATA_READY, LSR_DATA_READY);
    }

    #[test]
    fn received_bytes_interrupt_until_they_are_read() {
        let mut uart = Uart::default();
        uart.write(1, IER_RECEIVED);
        uart.write(4, MCR_INTERRUPTS);
        uart.receive(b"x");
        assert!(uart.line());
        assert_eq!(uart.read(2), IIR_RECEIVED);
        assert_eq!(uart.read(0), b'x');
        assert!(!uart.line());
    }

    #[test]
    fn an_empty_transmitter_interrupts_once_for_every_time_it_becomes_empty() {
        let mut uart = Uart::default();
        uart.write(4, MCR_INTERRUPTS);
        uart.write(1, IER_EMPTY);
        assert!(uart.line());
        assert_eq!(uart.read(2), IIR_EMPTY);
        assert!(!uart.line());
        uart.write(0, b'x');
        assert!(uart.line());
    }

    #[test]
    fn a_loop_shows_its_own_wires_and_bytes() {
        let mut uart = Uart::default();
        uart.write(4, MCR_LOOP | 0x0a);
        assert_eq!(uart.read(6) & 0xf0, 0x90);
        uart.write(0, b'y');
        assert_eq!(uart.read(0), b'y');
        assert!(uart.take_output().is_empty());
    }
}
