//! The deterministic board: the chips a guest finds, which change only in exits and windows.
//!
//! The machine hands every port access to [`Board`]; a chip never reads a host clock, file or socket. What a chip
//! wants done outside (a console byte, idling, power) comes back as a [`PortDeed`].

pub mod clock;
pub mod pc;
pub mod pic;
pub mod pit;
pub mod power;
pub mod rtc;
pub mod uart;

use super::abi;
use lockstep_protocol::ids::Position;
use pc::{Call, Pc};
use serde::{Deserialize, Serialize};
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
    /// An instruction that we put into the guest's kernel calls.
    Call(Call),
    /// The guest wants to start anew.
    Reset,
    /// The guest says that it is broken.
    Panic,
}

/// What lies behind the guest's ports.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Board {
    /// The micro guest's: a polled console, idling, power. Nothing interrupts.
    Micro(Uart),
    /// A PC, for stock Linux.
    Pc(Box<Pc>),
}

impl Board {
    /// The micro guest's board.
    #[must_use]
    pub fn micro() -> Self {
        Self::Micro(Uart::default())
    }

    /// A PC.
    #[must_use]
    pub fn pc() -> Self {
        Self::Pc(Box::default())
    }

    /// The guest wrote `data` to `port`. Unknown ports swallow it, as a real bus does.
    pub fn port_write(&mut self, port: u16, data: &[u8]) -> PortDeed {
        match self {
            Self::Micro(uart) => micro_write(uart, port, data),
            Self::Pc(pc) => pc.port_write(port, data),
        }
    }

    /// The guest, which made `position` exits before, reads `port` into `data`. Unknown ports read as all ones. `Some`
    /// is what EDX becomes besides.
    pub fn port_read(&mut self, port: u16, data: &mut [u8], position: Position) -> Option<u32> {
        match self {
            Self::Micro(uart) => {
                data.fill(0xff);
                if let (uart::BASE..=uart::LAST, [byte]) = (port, data) {
                    *byte = uart.read(port - uart::BASE);
                }
                None
            }
            Self::Pc(pc) => pc.port_read(port, data, position),
        }
    }

    /// What the guest printed since the last call.
    pub fn take_console(&mut self) -> Vec<u8> {
        match self {
            Self::Micro(uart) => uart.take_output(),
            Self::Pc(pc) => pc.take_console(),
        }
    }

    /// Console bytes came in (an input).
    pub fn console_input(&mut self, bytes: &[u8]) {
        match self {
            Self::Micro(uart) => uart.receive(bytes),
            Self::Pc(pc) => pc.console_input(bytes),
        }
    }
}

fn micro_write(uart: &mut Uart, port: u16, data: &[u8]) -> PortDeed {
    match (port, data) {
        (abi::IDLE_PORT, &[a, b, c, d]) => {
            return PortDeed::Idle(idle_limit(u32::from_le_bytes([a, b, c, d])));
        }
        (abi::POWER_PORT, &[abi::POWER_OFF, ..]) => return PortDeed::PowerOff,
        (abi::POWER_PORT, _) => return PortDeed::Panic,
        (uart::BASE..=uart::LAST, &[byte]) => uart.write(port - uart::BASE, byte),
        _ => {}
    }
    PortDeed::None
}

fn idle_limit(micros: u32) -> Option<Duration> {
    (micros != abi::IDLE_FOREVER).then(|| Duration::from_micros(u64::from(micros)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_write_carries_its_limit() {
        let mut board = Board::micro();
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
        Board::micro().port_read(0x1234, &mut data, Position::ZERO);
        assert_eq!(data, [0xff; 4]);
    }
}
