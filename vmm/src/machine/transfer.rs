//! A machine as it travels: what it is, read in a window, and another one made from that.
//!
//! Whoever builds a new backup or writes a snapshot calls [`Machine::capture`]; the other side calls
//! [`Machine::restore`] and fills the memory before the first step. Nothing here runs the guest.

use super::guest::Bootable;
use super::made::Made;
use super::vcpus::{SeveralError, Vcpus, VcpusState};
use super::{Exit, Guest, Machine, MachineSpec, Parts};
use crate::board::Board;
use crate::chips::ChipsError;
use crate::memory::GuestRam;
use crate::state::MachineState;
use crate::state::dirty::WriteTracker;
use crate::vcpu::{VcpuError, VcpuStateError};
use crate::virtio::mmio::{MmioDevice, WindowMisfit};
use crate::{kvm, memory};
use lockstep_protocol::ids::Position;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Why a machine cannot be captured in this window.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Before its first exit it is built, not copied.
    #[error("The guest has not made its first exit; ask again in a later window")]
    NotStarted,
    /// KVM serves the access in pieces, and what it still holds of it cannot be read.
    #[error("The guest is inside an access that is served in pieces; ask again in the next window")]
    InPieces,
    /// The instruction of the exit could not be finished.
    #[error(transparent)]
    Finish(#[from] VcpuError),
    /// No KVM.
    #[error(transparent)]
    Kvm(#[from] kvm::KvmError),
    /// KVM does not tell.
    #[error(transparent)]
    State(#[from] VcpuStateError),
    /// Of several vCPUs.
    #[error(transparent)]
    Several(#[from] SeveralError),
}

/// Why a machine cannot be made from a state here.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Another size.
    #[error(
        "The state is of a machine with {theirs} MiB, this one has {ours} MiB; set memory_mib to {theirs}"
    )]
    Memory {
        /// Of the state.
        theirs: u64,
        /// Of the specification.
        ours: u64,
    },
    /// Another guest.
    #[error(
        "The state is of a machine that boots {theirs}, this one boots {ours}; correct the guest in the configuration"
    )]
    Guest {
        /// Of the state.
        theirs: &'static str,
        /// Of the specification.
        ours: &'static str,
    },
    /// Another processor.
    #[error(
        "This host shows its guests another processor than the host of the state; use hosts of the same processor model and kernel"
    )]
    Processor,
    /// Other devices.
    #[error(
        "The state is of a machine with {theirs} devices, this one has {ours}; correct the configuration"
    )]
    Devices {
        /// Of the state.
        theirs: usize,
        /// Of the specification.
        ours: usize,
    },
    /// Another device.
    #[error(transparent)]
    Device(#[from] WindowMisfit),
    /// No memory.
    #[error(transparent)]
    NoMemory(#[from] memory::MemoryError),
    /// No KVM.
    #[error(transparent)]
    Kvm(#[from] kvm::KvmError),
    /// None of KVM's own chips.
    #[error(transparent)]
    Chips(#[from] ChipsError),
    /// KVM does not take the vCPU's state.
    #[error(transparent)]
    State(#[from] VcpuStateError),
    /// Nor that of several.
    #[error(transparent)]
    Several(#[from] SeveralError),
    /// Another number of vCPUs.
    #[error("The state is of a machine with {theirs} vCPUs, this one has {ours}; set vcpus to {theirs}")]
    Vcpus {
        /// Of the state.
        theirs: usize,
        /// Of the specification.
        ours: usize,
    },
}

impl Machine {
    /// What the machine is, apart from its memory. Called in an open window after it was served; finishes the
    /// instruction of the exit first and changes nothing that the guest can see.
    ///
    /// # Errors
    /// [`CaptureError::NotStarted`] and [`CaptureError::InPieces`] pass in a later window; others are KVM's.
    pub fn capture(&mut self) -> Result<MachineState, CaptureError> {
        if self.parts.position == Position::ZERO {
            return Err(CaptureError::NotStarted);
        }
        let vcpus = match &mut self.vcpus {
            Vcpus::Lone(vcpu) => {
                if !vcpu.settle(&mut self.parts)? {
                    return Err(CaptureError::InPieces);
                }
                VcpusState::Lone(Box::new(vcpu.state(&kvm::open()?, &self.vm)?))
            }
            Vcpus::Several(several) => VcpusState::Several(Box::new(several.state(&self.vm)?)),
        };
        let mut board = self.parts.board.clone();
        // Printed here, so nobody prints it there.
        board.take_console();
        Ok(MachineState {
            template: self.template,
            memory_mib: self.parts.memory_bytes >> 20,
            position: self.parts.position,
            time: self.parts.time,
            vcpus,
            board,
            devices: self.parts.devices.iter().map(MmioDevice::state).collect(),
            hook: self.hook,
            randomness: self.parts.randomness,
            restarts: self.parts.restarts,
        })
    }

    /// A machine that stands in the open window at the state's position. Its memory is zeroed: the caller fills it
    /// through [`Self::memory`] before the first step.
    ///
    /// # Errors
    /// When the state is not of such a machine, or this host cannot run it.
    pub fn restore(spec: MachineSpec, state: &MachineState) -> Result<Self, RestoreError> {
        let memory = Arc::new(memory::create(spec.memory_mib)?);
        Self::restore_in(spec, memory, state)
    }

    /// The same in `memory`, which is filled already and belongs to no other machine.
    ///
    /// # Errors
    /// As [`Self::restore`].
    pub fn restore_in(
        spec: MachineSpec,
        memory: Arc<GuestRam>,
        state: &MachineState,
    ) -> Result<Self, RestoreError> {
        check(&spec, state)?;
        let is_linux = matches!(state.board, Board::Pc(_));
        let made = Made::new::<RestoreError>(&memory, spec.vcpus, is_linux)?;
        let template = made.template.digest();
        if template != state.template {
            return Err(RestoreError::Processor);
        }
        let pulse = Arc::default();
        let (vm, mut vcpus) = made.into_parts(&pulse);
        let mut devices = spec.devices;
        for (device, was) in devices.iter_mut().zip(&state.devices) {
            device.restore(was)?;
        }
        vcpus.restore(&vm, &state.vcpus)?;
        let parts = Parts {
            memory,
            board: state.board.clone(),
            devices,
            time: state.time,
            position: state.position,
            cmdline: spec.cmdline,
            memory_bytes: spec.memory_mib << 20,
            seed: None,
            randomness: state.randomness,
            restarts: state.restarts,
            call: None,
            exit: Exit::default(),
            noted: None,
        };
        Ok(Self {
            count: spec.vcpus,
            vcpus,
            vm: Arc::new(vm),
            parts,
            hook: state.hook,
            template,
            guest: Bootable::later(spec.guest),
            tracked: Arc::new(AtomicBool::new(false)),
            pulse,
        })
    }

    /// From now on written pages are noted, the guest's by KVM and the VMM's own by the memory.
    ///
    /// # Errors
    /// When KVM refuses, or they are tracked already.
    pub fn track_writes(&self) -> Result<WriteTracker, kvm::KvmError> {
        WriteTracker::start(
            Arc::clone(&self.vm),
            Arc::clone(&self.parts.memory),
            Arc::clone(&self.tracked),
        )
    }
}

fn check(spec: &MachineSpec, state: &MachineState) -> Result<(), RestoreError> {
    let (theirs, ours) = (state.memory_mib, spec.memory_mib);
    if theirs != ours {
        return Err(RestoreError::Memory { theirs, ours });
    }
    let (theirs, ours) = (state.vcpus.count(), usize::from(spec.vcpus.get()));
    if theirs != ours {
        return Err(RestoreError::Vcpus { theirs, ours });
    }
    let theirs = match state.board {
        Board::Micro(_) => MICRO,
        Board::Pc(_) => LINUX,
    };
    let ours = match spec.guest {
        Guest::Micro(_) => MICRO,
        Guest::Linux { .. } => LINUX,
    };
    if theirs != ours {
        return Err(RestoreError::Guest { theirs, ours });
    }
    let (theirs, ours) = (state.devices.len(), spec.devices.len());
    if theirs != ours {
        return Err(RestoreError::Devices { theirs, ours });
    }
    Ok(())
}

const MICRO: &str = "the micro guest";
const LINUX: &str = "Linux";
