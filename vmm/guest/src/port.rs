//! The ports of the board: serial console, idle port and power port. Called by the image alone; every call but the
//! status reads of a transmitter is an exit, so nothing here is called in passing.

use core::arch::asm;
use core::fmt;

use lockstep_guest::abi;

/// The serial console.
pub(crate) struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| out8(abi::SERIAL_PORT, byte));
        Ok(())
    }
}

/// Opens a window, and waits at most `micros` for an input.
pub(crate) fn idle(micros: u32) {
    out32(abi::IDLE_PORT, micros);
}

/// Ends the VM.
pub(crate) fn power(code: u8) -> ! {
    loop {
        out8(abi::POWER_PORT, code);
    }
}

fn out8(port: u16, value: u8) {
    // SAFETY: only the ports of abi.rs come here; they belong to the VMM, which changes no guest memory but in its
    // window, where devices write to buffers that are read as volatile.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
}

fn out32(port: u16, value: u32) {
    // SAFETY: as for `out8`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) };
}
