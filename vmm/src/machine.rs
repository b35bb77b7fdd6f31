//! The machine: memory, board, devices and the vCPU, built in that order here and nowhere else.
//!
//! [`Machine::step`] runs to the next synchronous exit and serves it; then a window is open, in which the owner (the
//! recorder of a primary, the replayer of a backup) may [`inject`](Machine::inject) inputs. The machine itself reads no
//! clock, socket or file after it is built: same inputs at the same positions, same machine.

mod cr4;
mod delta;
mod digest;
mod epoch;
mod exit;
mod guest;
mod made;
mod paging;
mod parts;
mod restart;
mod room;
mod transfer;
mod user_tsc;
mod vcpus;
mod window;

pub use delta::DeltaError;
pub use digest::MachineDigest;
pub use exit::{End, Exit, IdleLimit, Kick};
pub use guest::Guest;
pub(crate) use parts::Parts;
pub use room::ReceiveRoom;
pub use transfer::{CaptureError, RestoreError};
pub(crate) use user_tsc::Hook;
pub use vcpus::SeveralError;
pub(crate) use vcpus::VcpusState;

use crate::board::Board;
use crate::boot::linux::SeedPlace;
use crate::memory::GuestRam;
use crate::vcpu::{Pulse, Stop, VcpuCount, VcpuError};
use crate::virtio::mmio::MmioDevice;
use crate::{boot, chips, kvm, memory};
use guest::Bootable;
use kvm_ioctls::VmFd;
use lockstep_protocol::ids::{DeviceId, GuestTime, Position};
use made::Made;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use vcpus::Vcpus;

/// Everything a machine is made from; equal on both hosts.
#[derive(Debug)]
pub struct MachineSpec {
    /// How many vCPUs.
    pub vcpus: VcpuCount,
    /// MiB of guest memory.
    pub memory_mib: u64,
    /// What it boots.
    pub guest: Guest,
    /// Its command line.
    pub cmdline: String,
    /// Its devices, in the order of their windows.
    pub devices: Vec<MmioDevice>,
}

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No memory.
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
    /// No KVM.
    #[error(transparent)]
    Kvm(#[from] kvm::KvmError),
    /// None of KVM's own chips.
    #[error(transparent)]
    Chips(#[from] chips::ChipsError),
    /// No guest.
    #[error(transparent)]
    Boot(#[from] boot::flat::BootError),
    /// No Linux.
    #[error(transparent)]
    Linux(#[from] boot::linux::LinuxError),
}

/// One VM on this host.
#[derive(Debug)]
pub struct Machine {
    // Declared before the memory: the VM with its slots is gone before the mapping is.
    vcpus: Vcpus,
    vm: Arc<VmFd>,
    pub(crate) parts: Parts,
    hook: Option<Hook>,
    template: [u8; 16],
    /// Set while written pages are tracked.
    tracked: Arc<AtomicBool>,
    /// What a guest that restarts boots again.
    guest: Bootable,
    pulse: Arc<Pulse>,
    count: VcpuCount,
}

/// How far a machine came.
#[derive(Debug)]
pub enum Advance {
    /// To the next synchronous exit, which opens a window.
    Exit(Exit),
    /// Not so far: the watchdog stopped it between two instructions. Its position is the one that it had.
    Stalled,
}

/// Why a machine cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Its vCPU cannot.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// It cannot be built anew for a guest that restarts.
    #[error("The guest restarts, but its machine cannot be built anew")]
    Restart(#[from] BuildError),
    /// Several vCPUs cannot become what they were elsewhere.
    #[error(transparent)]
    Several(#[from] SeveralError),
    /// They need a thread each.
    #[error("Cannot start the threads of the vCPUs; raise the limit on threads")]
    Threads(#[source] io::Error),
}

/// A machine before its first instruction, without its devices.
struct PoweredUp {
    vcpus: Vcpus,
    vm: VmFd,
    board: Board,
    seed: Option<SeedPlace>,
    template: [u8; 16],
}

impl Machine {
    /// Builds a machine that stands before its first instruction, at position 0, with its first window open.
    ///
    /// # Errors
    /// When the host has no memory or KVM for it, or the guest image is bad.
    pub fn build(spec: MachineSpec) -> Result<Self, BuildError> {
        let memory = Arc::new(memory::create(spec.memory_mib)?);
        let mut guest = Bootable::later(spec.guest);
        let pulse = Arc::default();
        let devices = spec.devices.len();
        let boots = guest.prepared(spec.vcpus)?;
        let up = PoweredUp::new(boots, &memory, &spec.cmdline, devices, spec.vcpus, &pulse)?;
        let parts = Parts {
            memory,
            board: up.board,
            devices: spec.devices,
            time: GuestTime::ZERO,
            position: Position::ZERO,
            cmdline: spec.cmdline,
            memory_bytes: spec.memory_mib << 20,
            seed: up.seed,
            randomness: [0; 32],
            restarts: false,
            call: None,
            exit: Exit::default(),
            noted: None,
        };
        Ok(Self {
            count: spec.vcpus,
            vcpus: up.vcpus,
            vm: Arc::new(up.vm),
            parts,
            hook: None,
            template: up.template,
            guest,
            tracked: Arc::new(AtomicBool::new(false)),
            pulse,
        })
    }

    /// Closes the window and runs to the next synchronous exit, which opens a new one.
    ///
    /// # Errors
    /// When KVM cannot run the guest.
    pub fn step(&mut self) -> Result<Exit, StepError> {
        loop {
            if let Advance::Exit(exit) = self.advance()? {
                return Ok(exit);
            }
        }
    }

    /// The same, but a watchdog may stop it before that. A machine with several vCPUs runs nothing here: its backup waits
    /// at the next position for what the primary's was in the end.
    ///
    /// # Errors
    /// When KVM cannot run the guest.
    pub fn advance(&mut self) -> Result<Advance, StepError> {
        if self.parts.restarts {
            return Ok(Advance::Exit(self.restart()?));
        }
        let stop = match (&mut self.vcpus, &self.parts.board) {
            (Vcpus::Several(_), _) => {
                self.parts.position = self.parts.position.next();
                return Ok(Advance::Exit(Exit::default()));
            }
            (Vcpus::Lone(vcpu), Board::Micro(_)) => vcpu.run(&mut self.parts)?,
            (Vcpus::Lone(_), Board::Pc(_)) => self.run_interrupted()?,
        };
        if stop == Stop::Stalled {
            return Ok(Advance::Stalled);
        }
        self.parts.position = self.parts.position.next();
        let mut exit = std::mem::take(&mut self.parts.exit);
        match stop {
            Stop::Access | Stop::Window | Stop::Stalled => {}
            Stop::Halt if self.is_halted() => exit.idle = self.sleeps().then_some(IdleLimit(None)),
            Stop::Halt if matches!(self.parts.board, Board::Pc(_)) => exit.end = Some(End::Halt),
            // The micro guest neither halts nor faults; without interrupts nothing would ever wake a halt.
            Stop::Halt | Stop::Step | Stop::Shutdown => {
                let rip = self.vcpus.lone().rip();
                exit.end = Some(End::Fault { rip });
            }
        }
        Ok(Advance::Exit(exit))
    }

    /// How its vCPU runs, for a watchdog.
    #[must_use]
    pub fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// Whether its next step is a restart, in which no write may be tracked.
    #[must_use]
    pub fn restarts(&self) -> bool {
        self.parts.restarts
    }

    /// How many synchronous exits there were; the open window's position.
    #[must_use]
    pub fn position(&self) -> Position {
        self.parts.position
    }

    /// What the guest's clock says.
    #[must_use]
    pub fn time(&self) -> GuestTime {
        self.parts.time
    }

    /// How long the guest has been running by its own clock.
    #[must_use]
    pub fn running_for(&self) -> GuestTime {
        match &self.parts.board {
            Board::Micro(_) => self.parts.time,
            Board::Pc(pc) => GuestTime::new(pc.now()),
        }
    }

    /// The digest of the CPUID template.
    #[must_use]
    pub fn template(&self) -> [u8; 16] {
        self.template
    }

    /// Guest memory, to be shared with device processes.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestRam> {
        &self.parts.memory
    }

    /// The device with this id, if there is one.
    #[must_use]
    pub fn device(&self, id: DeviceId) -> Option<&MmioDevice> {
        self.parts.devices.get(usize::from(id.get()))
    }

    /// What the guest printed since the last call.
    pub fn take_console(&mut self) -> Vec<u8> {
        self.parts.board.take_console()
    }
}

impl PoweredUp {
    /// Everything that a guest needs to start in `memory`, which is empty.
    fn new(
        guest: &Guest,
        memory: &GuestRam,
        cmdline: &str,
        devices: usize,
        count: VcpuCount,
        pulse: &Arc<Pulse>,
    ) -> Result<Self, BuildError> {
        let is_linux = matches!(guest, Guest::Linux { .. });
        let made = Made::new::<BuildError>(memory, count, is_linux)?;
        let first = &made.vcpus[0];
        let (board, seed) = match guest {
            Guest::Micro(image) => {
                boot::flat::load(memory, first, image)?;
                (Board::micro(), None)
            }
            Guest::Linux { kernel, initrd } => {
                let boot = boot::linux::Boot {
                    kernel,
                    initrd,
                    cmdline,
                    devices,
                    vcpus: count,
                };
                (Board::pc(), Some(boot.load(memory, first)?))
            }
        };
        let template = made.template.digest();
        let (vm, vcpus) = made.into_parts(pulse);
        Ok(Self {
            vcpus,
            vm,
            board,
            seed,
            template,
        })
    }
}
