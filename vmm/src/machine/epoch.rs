//! An epoch: for a while all vCPUs of a machine run freely, and each serves its own exits here, under one lock on what
//! exits change. What needs the outside is only noted, and asks for the epoch to end.
//!
//! [`Machine::run_epoch`] is what [`Machine::advance`] is for a machine with one vCPU; the run loop of a live host calls it.
//! Between two epochs all vCPUs stand still, and that is the only time at which anything from outside enters.

use super::vcpus::Vcpus;
use super::{End, Exit, IdleLimit, Machine, Parts, StepError};
use crate::board::Board;
use crate::board::pic::Irq;
use crate::ft::wait::Waker;
use crate::vcpu::Bus;
use crate::vcpu::cores::{self, Ended, Epoch as _};
use crate::virtio::mmio::MmioDevice;
use kvm_ioctls::VmFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// How KVM's interrupt controllers see the lines of the board, as far as that was told.
#[derive(Debug, Default)]
pub(super) struct Lines(Vec<bool>);

/// What the vCPUs share while they run.
#[derive(Debug)]
pub(super) struct Epoch {
    vm: Arc<VmFd>,
    lent: Mutex<Lent>,
    /// A vCPU of a guest that idles by a port of ours sleeps here.
    idle: Condvar,
    over: AtomicBool,
    called: AtomicBool,
    waker: Waker,
}

#[derive(Debug)]
struct Lent {
    parts: Parts,
    lines: Lines,
}

impl Machine {
    /// Whether it has several vCPUs, which run in epochs.
    #[must_use]
    pub fn is_several(&self) -> bool {
        matches!(self.vcpus, Vcpus::Several(_))
    }

    /// What the guest did in the epoch that a delta brought, once.
    pub fn take_exit(&mut self) -> Exit {
        match &mut self.vcpus {
            Vcpus::Lone(_) => Exit::default(),
            Vcpus::Several(several) => std::mem::take(&mut several.exit),
        }
    }

    /// Lets all vCPUs run until `rest` returns, then has them stand still, which is the next position. `rest` is given
    /// something to ask whether the guest called for the end; `waker` is rung when it does.
    ///
    /// # Errors
    /// When KVM cannot run the guest.
    pub fn run_epoch(
        &mut self,
        waker: &Waker,
        rest: impl FnOnce(&dyn Fn() -> bool),
    ) -> Result<Exit, StepError> {
        let Vcpus::Several(several) = &mut self.vcpus else {
            unreachable!("a machine with one vCPU runs from exit to exit");
        };
        several.exit = Exit::default();
        if self.parts.restarts {
            if self.is_busy() {
                rest(&|| false);
            }
            return Ok(self.restart()?);
        }
        several.catch_up(&self.vm)?;
        let epoch = Arc::new(Epoch {
            vm: Arc::clone(&self.vm),
            lent: Mutex::new(Lent {
                parts: self.parts.lend(),
                lines: std::mem::take(&mut several.lines),
            }),
            idle: Condvar::new(),
            over: AtomicBool::new(false),
            called: AtomicBool::new(false),
            waker: waker.clone(),
        });
        epoch.lock().drive_lines(&self.vm);
        let ended = several.cores.run(&epoch, || {
            rest(&|| epoch.is_called());
            epoch.end();
        });
        let epoch = Arc::into_inner(epoch).expect("every vCPU has come back from the epoch");
        let lent = epoch.lent.into_inner().unwrap_or_else(PoisonError::into_inner);
        (self.parts, several.lines) = (lent.parts, lent.lines);
        self.parts.position = self.parts.position.next();
        self.parts.take_noted();
        match ended.map_err(StepError::Threads)? {
            None => {}
            Some(Ended::Fault { rip }) => self.parts.exit.end = Some(End::Fault { rip }),
            Some(Ended::Error(error)) => return Err(error.into()),
        }
        let exit = std::mem::take(&mut self.parts.exit);
        several.exit = exit.clone();
        Ok(exit)
    }
}

impl Epoch {
    fn lock(&self) -> MutexGuard<'_, Lent> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the guest did what needs the outside.
    fn is_called(&self) -> bool {
        self.called.load(Ordering::Acquire)
    }

    fn call(&self) {
        if !self.called.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// The vCPUs are to stop.
    fn end(&self) {
        // Under the lock: whoever is about to sleep has seen it, or is woken.
        let lent = self.lock();
        self.over.store(true, Ordering::Release);
        drop(lent);
        self.idle.notify_all();
    }

    /// Serves one access.
    fn serve<T>(&self, access: impl FnOnce(&mut Parts) -> T) -> T {
        let mut lent = self.lock();
        let served = access(&mut lent.parts);
        lent.drive_lines(&self.vm);
        if lent.parts.wants_out() {
            self.call();
        }
        if let Some(limit) = lent.parts.exit.idle.take() {
            self.sleep(lent, limit);
        }
        served
    }

    /// The guest has nothing to do before the next input, or for this long: then its clock has to move.
    fn sleep(&self, lent: MutexGuard<'_, Lent>, IdleLimit(limit): IdleLimit) {
        let mut lent = lent;
        if let Some(limit) = limit {
            let slept = self.idle.wait_timeout_while(lent, limit, |_| !self.is_over());
            (lent, _) = slept.unwrap_or_else(PoisonError::into_inner);
            self.call();
        }
        drop(self.idle.wait_while(lent, |_| !self.is_over()));
    }
}

impl cores::Epoch for Epoch {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

impl Lent {
    /// Tells KVM what changed about the lines.
    fn drive_lines(&mut self, vm: &VmFd) {
        let Board::Pc(pc) = &self.parts.board else { return };
        let devices = self.parts.devices.iter().map(MmioDevice::interrupts);
        for (number, (irq, high)) in pc.lines(devices).enumerate() {
            match self.lines.0.get_mut(number) {
                Some(line) if *line == high => continue,
                Some(line) => *line = high,
                None => self.lines.0.push(high),
            }
            drive(vm, irq, high);
        }
    }
}

fn drive(vm: &VmFd, irq: Irq, high: bool) {
    if let Err(error) = vm.set_irq_line(irq.get().into(), high) {
        tracing::error!(%error, irq = irq.get(), "KVM does not take an interrupt of this board");
    }
}

impl Bus for &Epoch {
    fn port_write(&mut self, port: u16, data: &[u8]) {
        self.serve(|parts| parts.port_write(port, data));
    }

    fn port_read(&mut self, port: u16, data: &mut [u8]) -> Option<u32> {
        self.serve(|parts| parts.port_read(port, data))
    }

    fn mmio_write(&mut self, address: u64, data: &[u8]) {
        self.serve(|parts| parts.mmio_write(address, data));
    }

    fn mmio_read(&mut self, address: u64, data: &mut [u8]) {
        self.serve(|parts| parts.mmio_read(address, data));
    }

    fn msr_read(&mut self, _: u32) -> Option<u64> {
        None
    }

    fn msr_write(&mut self, _: u32, _: u64) -> bool {
        false
    }
}
