//! A program of the Debian guest, static and with nothing but std in it: for each line that it reads it executes `rdtsc`
//! and tells the count. `rdtsc.rs` of the lab compiles it and talks to it; it is in no crate.

use std::arch::x86_64::_rdtsc;
use std::io::{BufRead, Write, stdin, stdout};

fn main() -> std::io::Result<()> {
    let mut asked = 0_u64;
    for line in stdin().lock().lines() {
        line?;
        asked += 1;
        // SAFETY: every x86-64 processor has the instruction, and it touches nothing but its two registers. That the
        // kernel lets ring 3 execute it is what this program is for; if it does not, the program is killed.
        let count = unsafe { _rdtsc() };
        let mut out = stdout().lock();
        writeln!(out, "{asked} {count}")?;
        out.flush()?;
    }
    Ok(())
}
