//! A machine that becomes what its primary's is, in place: the end of a delta. The replayer of a backup calls it between
//! two records. What a delta is made from is [`Machine::capture`]; nothing here runs the guest.

use super::vcpus::{SeveralError, Vcpus};
use super::{Exit, Machine};
use crate::memory::GuestRam;
use crate::state::{MachineState, StateError};
use crate::transfer::pages::BadPages;
use crate::vcpu::VcpuError;
use crate::virtio::mmio::WindowMisfit;
use lockstep_protocol::ids::Position;

/// Why a machine cannot become what a delta says.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    /// The state is none.
    #[error(transparent)]
    State(#[from] StateError),
    /// It cannot be unpacked.
    #[error("The state in a delta cannot be unpacked")]
    Packed,
    /// The pages are none.
    #[error(transparent)]
    Pages(#[from] BadPages),
    /// It is of another position or another processor.
    #[error("A delta leads to a machine at position {theirs}, this one is at {ours}")]
    Elsewhere {
        /// Of the delta.
        theirs: Position,
        /// Of this machine.
        ours: Position,
    },
    /// The devices are others.
    #[error(transparent)]
    Device(#[from] WindowMisfit),
    /// The instruction of the last exit could not be finished.
    #[error(transparent)]
    Finish(#[from] VcpuError),
    /// KVM does not take the vCPUs' state.
    #[error(transparent)]
    Vcpus(#[from] SeveralError),
}

impl Machine {
    /// For the stories of machines with one vCPU that diverge: flips a bit of the stack pointer, the one register that every
    /// guest needs at every moment.
    ///
    /// # Errors
    /// When KVM refuses.
    pub(crate) fn flip_register(&mut self) -> Result<(), VcpuError> {
        let vcpu = self.vcpus.lone_mut();
        while vcpu.finish(&mut self.parts)?.is_some() {}
        let mut registers = vcpu.registers()?;
        registers.rsp ^= 1 << 6;
        vcpu.set_registers(&registers)
    }

    /// Becomes what `state` says; `put_pages` puts the memory that belongs to it in place. Called in a window. A machine
    /// that `heals` may stand anywhere before. After an error it is of no more use.
    ///
    /// # Errors
    /// When it cannot.
    pub fn become_like<E>(
        &mut self,
        state: &MachineState,
        heals: bool,
        put_pages: impl FnOnce(&GuestRam) -> Result<(), E>,
    ) -> Result<(), DeltaError>
    where
        DeltaError: From<E>,
    {
        let (theirs, ours) = (state.position, self.parts.position);
        if theirs != ours && !heals {
            return Err(DeltaError::Elsewhere { theirs, ours });
        }
        // KVM finishes the instruction of the last exit when it runs next. What it does then, maybe to memory, must be
        // over before anything else is put there.
        if let Vcpus::Lone(vcpu) = &mut self.vcpus {
            while vcpu.finish(&mut self.parts)?.is_some() {}
        }
        put_pages(&self.parts.memory)?;
        for (device, was) in self.parts.devices.iter_mut().zip(&state.devices) {
            device.restore(was)?;
        }
        self.vcpus.become_like(&self.vm, &state.vcpus)?;
        let parts = &mut self.parts;
        parts.board = state.board.clone();
        parts.position = state.position;
        parts.time = state.time;
        parts.randomness = state.randomness;
        parts.restarts = state.restarts;
        (parts.call, parts.exit) = (None, Exit::default());
        self.hook = state.hook;
        Ok(())
    }
}
