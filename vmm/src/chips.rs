//! KVM's own chips for a VM with several vCPUs: two interrupt controllers, the timer, and the clock. Made when the VM is,
//! read and set between two epochs. What the guest does to them KVM serves, unseen.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, kvm_clock_data,
    kvm_irqchip, kvm_pit_config, kvm_pit_state2,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What KVM has to have for them, by the name users find in the kernel's documentation.
pub const NEEDED: [(&str, Cap); 4] = [
    ("KVM_CAP_IRQCHIP", Cap::Irqchip),
    ("KVM_CAP_PIT2", Cap::Pit2),
    ("KVM_CAP_ADJUST_CLOCK", Cap::AdjustClock),
    ("KVM_CAP_MP_STATE", Cap::MpState),
];

/// In the order in which they are set: the local APICs come later and have the last word.
const CONTROLLERS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// Why KVM's chips cannot be made, read or set.
#[derive(Debug, thiserror::Error)]
pub enum ChipsError {
    /// A capability is missing.
    #[error("This KVM lacks {0}, so it runs no VM with several vCPUs; take `vcpus` out of the configuration")]
    Missing(&'static str),
    /// An ioctl failed.
    #[error("KVM refused to {what}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// What KVM answered.
        #[source]
        source: kvm_ioctls::Error,
    },
}

fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> ChipsError {
    move |source| ChipsError::Refused { what, source }
}

/// What the chips are.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ChipsState {
    controllers: [kvm_irqchip; 3],
    timer: kvm_pit_state2,
    /// What KVM's clock says, in ns.
    clock: u64,
}

/// The first capability that this KVM lacks for them.
#[must_use]
pub fn missing(kvm: &Kvm) -> Option<&'static str> {
    let lacking = NEEDED.into_iter().find(|(_, cap)| !kvm.check_extension(*cap));
    lacking.map(|(name, _)| name)
}

/// Gives a VM its chips, before its first vCPU.
///
/// # Errors
/// When this KVM has none.
#[expect(
    clippy::disallowed_methods,
    reason = "several vCPUs are copied, not recomputed: nothing needs a position"
)]
pub fn create(kvm: &Kvm, vm: &VmFd) -> Result<(), ChipsError> {
    if let Some(name) = missing(kvm) {
        return Err(ChipsError::Missing(name));
    }
    vm.create_irq_chip()
        .map_err(refused("make its interrupt controllers"))?;
    let timer = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(timer).map_err(refused("make its timer"))
}

impl ChipsState {
    /// Reads them, while no vCPU runs.
    pub(crate) fn read(vm: &VmFd) -> Result<Self, ChipsError> {
        let mut controllers = CONTROLLERS.map(|chip_id| kvm_irqchip {
            chip_id,
            ..Default::default()
        });
        for controller in &mut controllers {
            vm.get_irqchip(controller)
                .map_err(refused("tell its interrupt controllers"))?;
        }
        Ok(Self {
            controllers,
            timer: vm.get_pit2().map_err(refused("tell its timer"))?,
            clock: vm.get_clock().map_err(refused("tell its clock"))?.clock,
        })
    }

    /// Sets them, as they are when `passed` has gone by since they were read: the clock never runs backwards, and the
    /// guest notices that time went on.
    pub(crate) fn set(&self, vm: &VmFd, passed: Duration) -> Result<(), ChipsError> {
        let passed = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX);
        let clock = kvm_clock_data {
            clock: self.clock.saturating_add(passed),
            ..Default::default()
        };
        vm.set_clock(&clock).map_err(refused("set its clock"))?;
        for controller in &self.controllers {
            vm.set_irqchip(controller)
                .map_err(refused("set its interrupt controllers"))?;
        }
        vm.set_pit2(&self.timer).map_err(refused("set its timer"))
    }
}
