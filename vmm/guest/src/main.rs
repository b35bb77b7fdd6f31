//! The image: entry, stack, panic, and the main loop around the library's server. Started by the VMM in the state that
//! abi.rs describes. Never uses an instruction whose result is not determined by memory and registers.
#![no_std]
#![no_main]

extern crate alloc;

mod heap;
mod machine;
mod mem;
mod port;

use core::arch::global_asm;
use core::fmt::Write;
use core::panic::PanicInfo;
use core::time::Duration;

use lockstep_guest::abi::{self, BootPage};
use lockstep_guest::budget;
use lockstep_guest::cmdline::Cmdline;
use lockstep_guest::db::Db;
use lockstep_guest::disk::{Disk, NoDisk};
use lockstep_guest::log::{self, Log};
use lockstep_guest::prng::Prng;
use lockstep_guest::server::{Next, Server};
use lockstep_guest::stack::Stack;
use lockstep_guest::store::Store;
use lockstep_guest::virtio::blk::Blk;
use lockstep_guest::virtio::mmio::OpenError;
use lockstep_guest::virtio::net::Net;

const STACK_BYTES: usize = 512 << 10;

// `rdi` holds the address of the boot page, which abi.rs fixes anyway. The stack is 16-byte aligned before the call.
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
struct StackMemory([u8; STACK_BYTES]);

static mut STACK: StackMemory = StackMemory([0; STACK_BYTES]);

extern "C" fn main() -> ! {
    say(format_args!("up"));
    let boot = machine::boot_page();
    let heap = machine::claim_ram(&boot);
    match machine::registers(boot.blk_mmio)
        .map(|registers| Blk::open(registers, || port::idle(abi::IDLE_FOREVER)))
    {
        None | Some(Err(OpenError::Absent)) => {
            say(format_args!("no disk: nothing outlives a power-off"));
            serve(&boot, heap, NoDisk)
        }
        Some(Ok(disk)) => serve(&boot, heap, disk),
        Some(Err(error)) => panic!("{error}"),
    }
}

fn serve(boot: &BootPage<'_>, heap: usize, mut disk: impl Disk) -> ! {
    let clock = machine::Clock::new(boot);
    let line = Cmdline::parse(boot.cmdline).unwrap_or_else(|error| panic!("{error}"));
    let mut prng = Prng::new(&boot.seed);
    let registers = machine::registers(boot.net_mmio).expect("the boot page names a network device");
    let mut nic = Net::open(registers, [2, 0x4c, 0x53, 0, 0, 1]).unwrap_or_else(|error| panic!("{error}"));

    let mut store = Store::new();
    let log = if disk.sectors() == 0 {
        Log::volatile()
    } else {
        log::open(&mut disk, &mut store, prng.draw(), clock.now()).unwrap_or_else(|error| panic!("{error}"))
    };
    let connections = budget::connections(heap);
    let (stack, handles) = Stack::new(&mut nic, &line, prng.draw(), connections, clock.now());
    say(format_args!(
        "{} keys, at most {connections} clients, ready on port {}",
        store.len(),
        line.port
    ));

    let memory = budget::memory(heap, heap::free);
    let db = Db::new(store, log, memory, clock.now(), machine::counter);
    let mut server = Server::new(db, stack, handles, nic, disk);
    loop {
        match server.turn(clock.now()) {
            Next::Again => (),
            Next::Wait(wait) => port::idle(wait.map_or(abi::IDLE_FOREVER, micros)),
            Next::PowerOff => {
                say(format_args!("power off"));
                port::power(abi::POWER_OFF)
            }
        }
    }
}

/// A wait in the idle port's unit, which keeps its greatest value for "for ever".
fn micros(wait: Duration) -> u32 {
    u32::try_from(wait.as_micros())
        .unwrap_or(abi::IDLE_FOREVER - 1)
        .min(abi::IDLE_FOREVER - 1)
}

fn say(text: core::fmt::Arguments<'_>) {
    // The console takes everything.
    let _ = writeln!(port::Serial, "lockstep guest: {text}");
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say(format_args!("{info}"));
    port::power(abi::POWER_PANIC)
}
