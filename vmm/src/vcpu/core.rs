//! What KVM keeps of a vCPU that is one of several: its state as of any vCPU, and besides its local APIC and its clocks.
//! The machine calls it between two epochs.

use super::Vcpu;
use super::state::{VcpuState, VcpuStateError, refused};
use crate::board::clock::MSR_SYSTEM_TIME;
use crate::board::pc::MSR_TSC;
use kvm_bindings::kvm_lapic_state;
use kvm_ioctls::{Kvm, VmFd};
use serde::{Deserialize, Serialize};

const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// What such a vCPU is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CoreState {
    vcpu: VcpuState,
    apic: kvm_lapic_state,
    /// Where the guest wants KVM's clock to be shown. The wall time of power-on is asked for and read at once.
    clock: u64,
    /// When its timer is due, in terms of the counter; 0 when it is not.
    deadline: u64,
}

impl Vcpu {
    /// Reads everything. The vCPU must stand between two instructions.
    ///
    /// # Errors
    /// When KVM refuses.
    pub(crate) fn core_state(&mut self, kvm: &Kvm, vm: &VmFd) -> Result<CoreState, VcpuStateError> {
        let vcpu = self.state(kvm, vm)?;
        let apic = self.fd.get_lapic().map_err(refused("tell the local APIC"))?;
        let clock = self.msr(MSR_SYSTEM_TIME).unwrap_or(0);
        let deadline = self.msr(MSR_TSC_DEADLINE).unwrap_or(0);
        Ok(CoreState {
            vcpu,
            apic,
            clock,
            deadline,
        })
    }

    /// Becomes what the other vCPU was; its counter is set apart ([`Self::set_counter`]), before this.
    ///
    /// # Errors
    /// When this host's KVM does not take it.
    pub(crate) fn restore_core(&mut self, vm: &VmFd, state: &CoreState) -> Result<(), VcpuStateError> {
        self.restore(vm, &state.vcpu)?;
        self.fd
            .set_lapic(&state.apic)
            .map_err(refused("set the local APIC"))?;
        // The deadline comes behind the APIC, which forgets it. One that has passed is due at once.
        let (clock, deadline) = ((MSR_SYSTEM_TIME, state.clock), (MSR_TSC_DEADLINE, state.deadline));
        self.set_msrs(&[clock])?;
        match state.deadline {
            0 => Ok(()),
            _ => self.set_msrs(&[deadline]),
        }
    }

    /// What its time-stamp counter says.
    pub(crate) fn counter(&self) -> u64 {
        self.msr(MSR_TSC).unwrap_or(0)
    }

    /// How fast that counts, in kHz; 0 when KVM does not tell.
    pub(crate) fn counter_khz(&self) -> u32 {
        self.fd.get_tsc_khz().unwrap_or(0)
    }

    /// Sets the counter. KVM takes values that are set one soon after the other for one and the same, so that the
    /// counters of all vCPUs are equal.
    ///
    /// # Errors
    /// When this host's KVM does not take it.
    pub(crate) fn set_counter(&mut self, value: u64) -> Result<(), VcpuStateError> {
        let one = super::state::block([(MSR_TSC, value)].into_iter());
        match self.fd.set_msrs(&one) {
            Ok(1) => Ok(()),
            Ok(_) => Err(VcpuStateError::Msr {
                index: MSR_TSC,
                value,
            }),
            Err(source) => Err(refused("set the time-stamp counter")(source)),
        }
    }
}
