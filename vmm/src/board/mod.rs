//! The deterministic board: the chips a guest finds, which change only in exits and windows.
//!
//! The machine hands every port access to [`Board`]; a chip never reads a host clock, file or socket. What a chip
//! wants done outside (a console byte, idling, power) comes back as a [`PortDeed`].

pub mod clock;
pub mod uart;

use super::abi;
use std::time::Duration;
use uart::Uart;

/// What a port access asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortDeed {
    /// Nothing beyond the chip's own change.
    None,
    /// The guest has nothing to do until an input comes, or for this long; `None` is no limit.
    Idle(Option<Duration>),
    /// The guest switched itself off.
    PowerOff,
    /// The guest says that it is broken.
    Panic,
}

/// All chips behind ports.
#[derive(Debug, Default)]
pub struct Board {
    uart: Uart,
}

impl Board {
    /// The guest wrote `data` to `port`. Unknown ports swallow it, as a real bus does.
    pub fn port_write(&mut self, port: u16, data: &[u8]) -> PortDeed {
        match (port, data) {
            (abi::IDLE_PORT, &[a, b, c, d]) => PortDeed::Idle(idle_limit(u32::from_le_bytes([a, b, c, d]))),
            (abi::POWER_PORT, &[abi::POWER_OFF, ..]) => PortDeed::PowerOff,
            (abi::POWER_PORT, _) => PortDeed::Panic,
            (uart::BASE..=uart::LAST, &[byte]) => {
                self.uart.write(port - uart::BASE, byte);
                PortDeed::None
            }
            _ => PortDeed::None,
        }
    }

    /// The guest reads `port` into `data`. Unknown ports read as all ones.
    pub fn port_read(&mut self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let (uart::BASE..=uart::LAST, [byte]) = (port, data) {
            *byte = self.uart.read(port - uart::BASE);
        }
    }

    /// What the guest printed since the last call.
    pub fn take_console(&mut self) -> Vec<u8> {
        self.uart.take_output()
    }

    /// Console bytes came in (an input).
    pub fn console_input(&mut self, bytes: &[u8]) {
        self.uart.receive(bytes);
    }
}

fn idle_limit(micros: u32) -> Option<Duration> {
    (micros != abi::IDLE_FOREVER).then(|| Duration::from_micros(u64::from(micros)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_write_carries_its_limit() {
        let mut board = Board::default();
        assert_eq!(
            board.port_write(abi::IDLE_PORT, &250_u32.to_le_bytes()),
            PortDeed::Idle(Some(Duration::from_micros(250)))
        );
        assert_eq!(
            board.port_write(abi::IDLE_PORT, &u32::MAX.to_le_bytes()),
            PortDeed::Idle(None)
        );
    }

    #[test]
    fn an_unknown_port_reads_as_all_ones() {
        let mut data = [0; 4];
        Board::default().port_read(0x1234, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}
