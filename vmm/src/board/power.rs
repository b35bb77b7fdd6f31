//! How a PC is switched off and reset: the ACPI control register, the reset register, and the old ways.
//!
//! The PC board passes the accesses and the ACPI tables name the ports. There are no events: nobody presses a button.

use serde::{Deserialize, Serialize};

/// ACPI PM1a event block: status, then enable, 16 bits each.
pub const EVENTS: u16 = 0x600;
/// ACPI PM1a control block, 16 bits.
pub const CONTROL: u16 = 0x604;
/// Last port of the two blocks.
pub const LAST: u16 = 0x605;
/// The reset register that the FADT names.
pub const RESET: u16 = 0xcf9;
/// What is written there.
pub const RESET_VALUE: u8 = 0x06;
/// The keyboard controller's command port: there is no keyboard, but its reset line works.
pub const KEYBOARD: u16 = 0x64;
/// `SLP_TYP` of the state "off" in the DSDT.
pub const OFF: u16 = 5;

const SCI_ENABLED: u16 = 1;
const SLEEP_ENABLE: u16 = 1 << 13;
const PULSE_RESET: u8 = 0xfe;

/// The two ACPI blocks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Power {
    enabled: u16,
    control: u16,
}

impl Default for Power {
    fn default() -> Self {
        // There is no legacy mode to leave.
        Self {
            enabled: 0,
            control: SCI_ENABLED,
        }
    }
}

/// What an access comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressed {
    /// Nothing.
    Nothing,
    /// The machine is off.
    Off,
    /// The machine starts anew.
    Reset,
}

impl Power {
    /// The guest wrote to one of the ports above.
    pub fn write(&mut self, port: u16, data: &[u8]) -> Pressed {
        match (port, data) {
            (RESET, &[byte]) if byte & 0x04 != 0 => Pressed::Reset,
            (KEYBOARD, &[PULSE_RESET]) => Pressed::Reset,
            (CONTROL, &[low, high]) => {
                let value = u16::from_le_bytes([low, high]);
                self.control = value & !SLEEP_ENABLE | SCI_ENABLED;
                let off = value & SLEEP_ENABLE != 0 && value >> 10 & 7 == OFF;
                if off { Pressed::Off } else { Pressed::Nothing }
            }
            (port, &[low, high]) if port == EVENTS + 2 => {
                self.enabled = u16::from_le_bytes([low, high]);
                Pressed::Nothing
            }
            _ => Pressed::Nothing,
        }
    }

    /// The guest reads one of the ports above.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        let value = match port {
            CONTROL => self.control,
            _ if port == EVENTS + 2 => self.enabled,
            // No event is ever pending, and the keyboard controller has nothing to say.
            _ => 0,
        };
        data.fill(0);
        data.iter_mut()
            .zip(value.to_le_bytes())
            .for_each(|(to, from)| *to = from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sleep_state_five_with_the_enable_bit_switches_off() {
        let mut power = Power::default();
        let set = OFF << 10 | SCI_ENABLED;
        assert_eq!(power.write(CONTROL, &set.to_le_bytes()), Pressed::Nothing);
        assert_eq!(
            power.write(CONTROL, &(set | SLEEP_ENABLE).to_le_bytes()),
            Pressed::Off
        );
        assert_eq!(
            power.write(CONTROL, &(1 << 10 | SLEEP_ENABLE).to_le_bytes()),
            Pressed::Nothing
        );
    }

    #[test]
    fn both_reset_registers_reset() {
        let mut power = Power::default();
        assert_eq!(power.write(RESET, &[RESET_VALUE]), Pressed::Reset);
        assert_eq!(power.write(KEYBOARD, &[PULSE_RESET]), Pressed::Reset);
        assert_eq!(power.write(KEYBOARD, &[0x20]), Pressed::Nothing);
    }

    #[test]
    fn acpi_is_on_from_the_start() {
        let mut data = [0; 2];
        Power::default().read(CONTROL, &mut data);
        assert_eq!(u16::from_le_bytes(data), SCI_ENABLED);
    }
}
