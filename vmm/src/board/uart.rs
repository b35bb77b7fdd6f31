//! A 16550 as far as a polled console needs it: bytes out at once, bytes in from a bounded queue, no interrupts yet.
//! The board calls it on port accesses; it prints nothing itself.

use std::collections::VecDeque;

/// First port of COM1.
pub const BASE: u16 = 0x3f8;
/// Last port of COM1.
pub const LAST: u16 = 0x3ff;

/// What the guest may print before somebody takes it; older bytes go first.
const OUTPUT_MAX: usize = 64 * 1024;
/// What may wait for the guest to read; later bytes are lost, as on a real line.
const INPUT_MAX: usize = 4096;

const LSR_TRANSMITTER_EMPTY: u8 = 0x60;
const LSR_DATA_READY: u8 = 0x01;
const LCR_DIVISOR_LATCH: u8 = 0x80;

/// The registers that read back, and both directions' bytes.
#[derive(Debug, Default)]
pub struct Uart {
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
    output: Vec<u8>,
    input: VecDeque<u8>,
}

impl Uart {
    /// The guest wrote `byte` to register `offset`.
    pub fn write(&mut self, offset: u16, byte: u8) {
        let latch = self.line_control & LCR_DIVISOR_LATCH != 0;
        match offset {
            0 | 1 if latch => self.divisor[usize::from(offset)] = byte,
            0 => self.transmit(byte),
            1 => self.interrupt_enable = byte & 0x0f,
            3 => self.line_control = byte,
            4 => self.modem_control = byte,
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
            2 => 0x01, // no interrupt pending
            3 => self.line_control,
            4 => self.modem_control,
            5 if self.input.is_empty() => LSR_TRANSMITTER_EMPTY,
            5 => LSR_TRANSMITTER_EMPTY | LSR_DATA_READY,
            6 => 0xb0, // carrier, ready, clear to send
            _ => self.scratch,
        }
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
        if self.output.len() == OUTPUT_MAX {
            self.output.drain(..OUTPUT_MAX / 2);
        }
        self.output.push(byte);
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
}
