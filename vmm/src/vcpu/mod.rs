//! A vCPU: from resume to the next synchronous exit, each typed.
//!
//! The machine calls [`Vcpu::run`] once per position. A return that the guest did not cause (a signal) is not an exit:
//! it is run again here and nobody counts it, unless the watchdog asked for it. Several vCPUs run in epochs ([`cores`]).

mod core;
pub mod cores;
mod count;
mod interrupt;
mod pulse;
mod state;
mod watchdog;
mod xsave;

pub(crate) use core::CoreState;
pub use count::VcpuCount;
pub use pulse::Pulse;
pub use state::{VcpuState, VcpuStateError};
pub use watchdog::Watchdog;

use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, kvm_guest_debug, kvm_regs,
    kvm_segment, kvm_sregs,
};
use kvm_ioctls::{SyncReg, VcpuExit, VcpuFd};
use std::sync::Arc;

/// A return from `KVM_RUN` that the guest caused. Reads are answered before the next [`Vcpu::run`] by the closures' results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The access was passed to the bus and is done.
    Access,
    /// HLT.
    Halt,
    /// A triple fault.
    Shutdown,
    /// The guest can take the interrupt that waits for it.
    Window,
    /// The one instruction that was asked for is done.
    Step,
    /// The watchdog asked for it: no exit, the guest stands between two instructions.
    Stalled,
}

/// Why the vCPU cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// The ioctl itself failed.
    #[error("KVM could not run the vCPU")]
    Run(#[source] kvm_ioctls::Error),
    /// KVM gave up on the guest.
    #[error("KVM stopped the guest at rip {rip:#x}: {why}")]
    Stopped {
        /// Where the guest was.
        rip: u64,
        /// What KVM said.
        why: String,
    },
    /// The kernel is not like others.
    #[error(
        "The guest's kernel handles general protection faults by code that Lockstep does not know; boot a kernel as a \
         distribution ships it"
    )]
    UnknownHandler,
}

/// What lies behind the guest's ports and device windows.
pub trait Bus {
    /// OUT.
    fn port_write(&mut self, port: u16, data: &[u8]);
    /// IN. `Some` is what EDX becomes besides.
    fn port_read(&mut self, port: u16, data: &mut [u8]) -> Option<u32>;
    /// A store outside memory.
    fn mmio_write(&mut self, address: u64, data: &[u8]);
    /// A load outside memory.
    fn mmio_read(&mut self, address: u64, data: &mut [u8]);
    /// RDMSR of a filtered register; `None` is a fault.
    fn msr_read(&mut self, index: u32) -> Option<u64>;
    /// WRMSR of a filtered register; false is a fault.
    fn msr_write(&mut self, index: u32, value: u64) -> bool;
}

/// The vCPU's file and run page.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    /// The instruction of the last exit is not finished: KVM does that when it runs next.
    unfinished: bool,
    /// An exit that finishing the last one took: the next run begins with it.
    ahead: Option<Stop>,
    /// The run page has the general registers as they are.
    is_shown: bool,
    pulse: Arc<Pulse>,
}

/// Where user space goes on after a fault that is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserReturn {
    /// The next instruction.
    pub rip: u64,
    /// Its code segment's selector.
    pub cs: u64,
    /// The flags.
    pub flags: u64,
    /// The stack.
    pub rsp: u64,
    /// Its segment's selector.
    pub ss: u64,
}

/// Linux' selector of 64-bit user code.
const USER_CODE_64: u64 = 0x33;

impl Vcpu {
    /// Takes over a vCPU whose registers are set; `pulse` tells how it runs. Every exit brings the general registers along:
    /// that costs a copy, and asking for them would cost a load of the whole vCPU.
    #[must_use]
    pub fn new(mut fd: VcpuFd, pulse: Arc<Pulse>) -> Self {
        fd.set_sync_valid_reg(SyncReg::Register);
        Self {
            fd,
            unfinished: false,
            ahead: None,
            is_shown: false,
            pulse,
        }
    }

    /// Runs to the next synchronous exit and lets `bus` serve it.
    ///
    /// # Errors
    /// When KVM cannot run the vCPU or reports a state nobody can go on from.
    pub fn run(&mut self, bus: &mut impl Bus) -> Result<Stop, VcpuError> {
        if let Some(stop) = self.ahead.take() {
            return Ok(stop);
        }
        self.pulse.enter();
        let stop = loop {
            match self.run_once(bus) {
                Ok(None) if self.pulse.is_asked() => break Ok(Stop::Stalled),
                Ok(None) => {}
                Ok(Some(stop)) => break Ok(stop),
                Err(error) => break Err(error),
            }
        };
        self.pulse.leave();
        stop
    }

    /// Runs until `is_over`, and lets `bus` serve all exits; [`Stop::Stalled`] then, between two instructions. Another stop
    /// is one after which there is nothing to run.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_until(&mut self, bus: &mut impl Bus, is_over: impl Fn() -> bool) -> Result<Stop, VcpuError> {
        while !is_over() {
            match self.run_once(bus)? {
                None | Some(Stop::Access) => {}
                Some(stop) => return Ok(stop),
            }
        }
        while self.finish(bus)?.is_some() {}
        Ok(Stop::Stalled)
    }

    /// Finishes the instruction of the last exit without running another one, so that an interrupt may come after it.
    /// Finishing may take another exit (an access that is served in pieces): that one is served like any other.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn finish(&mut self, bus: &mut impl Bus) -> Result<Option<Stop>, VcpuError> {
        if self.ahead.is_some() || !self.unfinished {
            return Ok(self.ahead.take());
        }
        self.fd.set_kvm_immediate_exit(1);
        let stop = self.run_once(bus);
        self.fd.set_kvm_immediate_exit(0);
        stop
    }

    /// Finishes the instruction of the last exit without a step: false when that took another exit, which is served and
    /// kept for the next run. The guest sees no difference.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn settle(&mut self, bus: &mut impl Bus) -> Result<bool, VcpuError> {
        self.ahead = self.finish(bus)?;
        Ok(self.ahead.is_none())
    }

    /// One return from `KVM_RUN`; `None` if the guest did not cause it.
    fn run_once(&mut self, bus: &mut impl Bus) -> Result<Option<Stop>, VcpuError> {
        self.unfinished = false;
        self.is_shown = true;
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => bus.port_write(port, data),
            Ok(VcpuExit::IoIn(port, data)) => {
                if let Some(edx) = bus.port_read(port, data) {
                    self.set_edx(edx);
                }
            }
            Ok(VcpuExit::MmioWrite(address, data)) => bus.mmio_write(address, data),
            Ok(VcpuExit::MmioRead(address, data)) => bus.mmio_read(address, data),
            Ok(VcpuExit::X86Rdmsr(exit)) => match bus.msr_read(exit.index) {
                Some(value) => *exit.data = value,
                None => *exit.error = 1,
            },
            Ok(VcpuExit::X86Wrmsr(exit)) => *exit.error = u8::from(!bus.msr_write(exit.index, exit.data)),
            Ok(VcpuExit::Hlt) => return Ok(Some(Stop::Halt)),
            Ok(VcpuExit::Shutdown) => return Ok(Some(Stop::Shutdown)),
            Ok(VcpuExit::IrqWindowOpen) => return Ok(Some(Stop::Window)),
            Ok(VcpuExit::Debug(_)) => return Ok(Some(Stop::Step)),
            Ok(VcpuExit::Intr) => return Ok(None),
            Ok(other) => {
                let why = format!("{other:?}");
                return Err(VcpuError::Stopped { rip: self.rip(), why });
            }
            Err(error) if is_interruption(&error) => return Ok(None),
            Err(error) => return Err(VcpuError::Run(error)),
        }
        self.unfinished = true;
        Ok(Some(Stop::Access))
    }

    /// Finishes the instruction of the last exit without running another one, so that the registers can be looked at.
    ///
    /// # Errors
    /// When KVM cannot run the vCPU.
    pub fn complete(&mut self) -> Result<(), VcpuError> {
        self.fd.set_kvm_immediate_exit(1);
        self.is_shown = true;
        let done = self.fd.run().map(|_| ());
        self.fd.set_kvm_immediate_exit(0);
        match done {
            Err(error) if !is_interruption(&error) => Err(VcpuError::Run(error)),
            _ => Ok(()),
        }
    }

    /// Whether the guest could take an interrupt when it last stopped.
    pub fn can_interrupt(&mut self) -> bool {
        let run = self.fd.get_kvm_run();
        run.ready_for_interrupt_injection != 0 && run.if_flag != 0
    }

    /// Whether the guest let interrupts in when it last stopped.
    pub fn lets_interrupts_in(&mut self) -> bool {
        self.fd.get_kvm_run().if_flag != 0
    }

    /// Makes the guest take interrupt `vector` when it runs next.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn interrupt(&mut self, vector: u8) -> Result<(), VcpuError> {
        interrupt::queue(&self.fd, vector).map_err(VcpuError::Run)
    }

    /// Whether the next run should stop as soon as the guest can take an interrupt.
    pub fn want_window(&mut self, wanted: bool) {
        self.fd.get_kvm_run().request_interrupt_window = u8::from(wanted);
    }

    /// Runs a single instruction, with interrupts blocked, or to the exit that it makes.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn step(&mut self, bus: &mut impl Bus) -> Result<Stop, VcpuError> {
        self.debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ)?;
        let stop = loop {
            match self.run(bus) {
                Ok(Stop::Stalled) => {}
                stop => break stop,
            }
        };
        self.debug(0)?;
        stop
    }

    fn debug(&self, control: u32) -> Result<(), VcpuError> {
        let debug = kvm_guest_debug {
            control,
            ..Default::default()
        };
        self.fd.set_guest_debug(&debug).map_err(VcpuError::Run)
    }

    /// Control registers, segments and descriptor tables.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn system_registers(&self) -> Result<kvm_sregs, VcpuError> {
        self.fd.get_sregs().map_err(VcpuError::Run)
    }

    /// The general registers of the last exit; there was one.
    #[must_use]
    pub fn shown(&self) -> kvm_regs {
        self.fd.sync_regs().regs
    }

    /// Sets the general registers; the last exit must be finished.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn set_registers(&mut self, registers: &kvm_regs) -> Result<(), VcpuError> {
        self.fd.set_regs(registers).map_err(VcpuError::Run)?;
        self.fd.sync_regs_mut().regs = *registers;
        Ok(())
    }

    /// Takes back a fault of user space that was about to be handled: the program goes on at `back` with `counter` in
    /// EDX:EAX, as after `rdtsc`.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn return_to_user(&mut self, back: &UserReturn, counter: u64) -> Result<(), VcpuError> {
        let mut sregs = self.fd.get_sregs().map_err(VcpuError::Run)?;
        let user = kvm_segment {
            limit: 0xffff_ffff,
            present: 1,
            dpl: 3,
            s: 1,
            g: 1,
            ..Default::default()
        };
        let is_64_bit = back.cs == USER_CODE_64;
        let selector = |value: u64| u16::try_from(value & 0xffff).expect("masked to 16 bits");
        let (long, short) = (u8::from(is_64_bit), u8::from(!is_64_bit));
        sregs.cs = kvm_segment {
            selector: selector(back.cs),
            type_: 11,
            l: long,
            db: short,
            ..user
        };
        sregs.ss = kvm_segment {
            selector: selector(back.ss),
            type_: 3,
            db: 1,
            ..user
        };
        self.fd.set_sregs(&sregs).map_err(VcpuError::Run)?;
        let mut regs = self.fd.sync_regs().regs;
        (regs.rip, regs.rsp, regs.rflags) = (back.rip, back.rsp, back.flags);
        (regs.rax, regs.rdx) = (counter & 0xffff_ffff, counter >> 32);
        self.set_registers(&regs)
    }

    fn set_edx(&mut self, edx: u32) {
        self.fd.sync_regs_mut().regs.rdx = u64::from(edx);
        self.fd.set_sync_dirty_reg(SyncReg::Register);
    }

    /// The general registers.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn registers(&self) -> Result<kvm_regs, VcpuError> {
        if self.is_shown {
            return Ok(self.shown());
        }
        self.fd.get_regs().map_err(VcpuError::Run)
    }

    /// The floating-point and vector registers.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn float_registers(&self) -> Result<kvm_bindings::kvm_fpu, VcpuError> {
        self.fd.get_fpu().map_err(VcpuError::Run)
    }

    /// Where the guest is, for reports; 0 when KVM will not say.
    #[must_use]
    pub fn rip(&self) -> u64 {
        self.fd.get_regs().map_or(0, |regs| regs.rip)
    }
}

fn is_interruption(error: &kvm_ioctls::Error) -> bool {
    matches!(error.errno(), libc::EINTR | libc::EAGAIN)
}
