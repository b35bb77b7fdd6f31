//! The one vCPU: from resume to the next synchronous exit, each typed.
//!
//! The machine calls [`Vcpu::run`] once per position. A return that the guest did not cause (a signal) is not an exit:
//! it is run again here and nobody counts it.

use kvm_ioctls::{VcpuExit, VcpuFd};

/// A return from `KVM_RUN` that the guest caused. Reads are answered before the next [`Vcpu::run`] by the closures' results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The access was passed to the bus and is done.
    Access,
    /// HLT.
    Halt,
    /// A triple fault.
    Shutdown,
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
}

/// What lies behind the guest's ports and device windows.
pub trait Bus {
    /// OUT.
    fn port_write(&mut self, port: u16, data: &[u8]);
    /// IN.
    fn port_read(&mut self, port: u16, data: &mut [u8]);
    /// A store outside memory.
    fn mmio_write(&mut self, address: u64, data: &[u8]);
    /// A load outside memory.
    fn mmio_read(&mut self, address: u64, data: &mut [u8]);
}

/// The vCPU's file and run page.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
}

impl Vcpu {
    /// Takes over a vCPU whose registers are set.
    #[must_use]
    pub fn new(fd: VcpuFd) -> Self {
        Self { fd }
    }

    /// Runs to the next synchronous exit and lets `bus` serve it.
    ///
    /// # Errors
    /// When KVM cannot run the vCPU or reports a state nobody can go on from.
    pub fn run(&mut self, bus: &mut impl Bus) -> Result<Stop, VcpuError> {
        loop {
            let why = match self.fd.run() {
                Ok(VcpuExit::IoOut(port, data)) => return Ok(served(|| bus.port_write(port, data))),
                Ok(VcpuExit::IoIn(port, data)) => return Ok(served(|| bus.port_read(port, data))),
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    return Ok(served(|| bus.mmio_write(address, data)));
                }
                Ok(VcpuExit::MmioRead(address, data)) => return Ok(served(|| bus.mmio_read(address, data))),
                Ok(VcpuExit::Hlt) => return Ok(Stop::Halt),
                Ok(VcpuExit::Shutdown) => return Ok(Stop::Shutdown),
                Ok(VcpuExit::Intr) => continue,
                Ok(other) => format!("{other:?}"),
                Err(error) if is_interruption(&error) => continue,
                Err(error) => return Err(VcpuError::Run(error)),
            };
            return Err(VcpuError::Stopped { rip: self.rip(), why });
        }
    }

    /// Finishes the instruction of the last exit without running another one, so that the registers can be looked at.
    ///
    /// # Errors
    /// When KVM cannot run the vCPU.
    pub fn complete(&mut self) -> Result<(), VcpuError> {
        self.fd.set_kvm_immediate_exit(1);
        let outcome = self.fd.run().map(|_| ());
        self.fd.set_kvm_immediate_exit(0);
        match outcome {
            Ok(()) => Ok(()),
            Err(error) if is_interruption(&error) => Ok(()),
            Err(error) => Err(VcpuError::Run(error)),
        }
    }

    /// The general registers.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn registers(&self) -> Result<kvm_bindings::kvm_regs, VcpuError> {
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

fn served(access: impl FnOnce()) -> Stop {
    access();
    Stop::Access
}

fn is_interruption(error: &kvm_ioctls::Error) -> bool {
    matches!(error.errno(), libc::EINTR | libc::EAGAIN)
}
