//! The image: entry, stack and panic; hands over to the library. Started by the VMM with the state that abi.rs says.
#![no_std]
#![no_main]

mod mem;
mod port;

use core::arch::global_asm;
use core::fmt::Write;
use core::panic::PanicInfo;

use lockstep_guest::abi;

const STACK_BYTES: usize = 512 << 10;

// `rdi` holds the address of the boot page and passes through. The stack is 16-byte aligned at the call.
global_asm!(
    ".section .text._start, \"ax\"",
    ".globl _start",
    "_start:",
    "lea rsp, [rip + {stack} + {bytes}]",
    "xor ebp, ebp",
    "call {main}",
    "ud2",
    stack = sym STACK,
    bytes = const STACK_BYTES,
    main = sym main,
);

#[repr(C, align(64))]
struct Stack([u8; STACK_BYTES]);

static mut STACK: Stack = Stack([0; STACK_BYTES]);

extern "C" fn main(_boot_page: *const u8) -> ! {
    let _ = writeln!(port::Serial, "lockstep guest: up");
    loop {
        port::idle(abi::IDLE_FOREVER);
    }
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    // Nothing better can be done about a console that refuses.
    let _ = writeln!(port::Serial, "lockstep guest: {info}");
    port::power(abi::POWER_PANIC)
}
