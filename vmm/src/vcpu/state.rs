//! Everything that KVM keeps of a vCPU, read out of one and put into another. The machine calls it between two
//! instructions (`Vcpu::settle`); clocks are left out, because the board keeps them.

use super::{Vcpu, xsave};
use crate::board::clock::MSR_WALL_CLOCK;
use crate::board::pc::MSR_TSC;
use crate::state::bounds;
use kvm_bindings::{
    KVM_MAX_MSR_ENTRIES, Msrs, kvm_debugregs, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VmFd};
use serde::{Deserialize, Serialize};

/// MSRs that are clocks, or the interface of another hypervisor that our CPUID template does not show.
const LEFT_OUT: [std::ops::RangeInclusive<u32>; 6] = [
    MSR_TSC..=0x12,                      // the counter, and the old numbers of KVM's clocks
    0x3b..=0x3b,                         // TSC_ADJUST
    0x6e0..=0x6e0,                       // TSC_DEADLINE
    MSR_WALL_CLOCK..=MSR_WALL_CLOCK + 6, // KVM's own
    0x4000_0000..=0x4000_ffff,           // Hyper-V
    0xc000_0103..=0xc000_0104,           // TSC_AUX, which comes with RDTSCP, and the ratio of the counter
];
/// As many as one ioctl takes; KVM is asked for no longer list either.
const MSRS_MAX: usize = KVM_MAX_MSR_ENTRIES;

/// What a vCPU is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VcpuState {
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Vec<u32>,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    #[serde(deserialize_with = "bounds::no_longer::<MSRS_MAX, _, _, _>")]
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
    /// What the last exit said of interrupts: the next step decides by it.
    ready_for_interrupt: bool,
    interrupts_on: bool,
}

/// Why a vCPU's state could not be read or set.
#[derive(Debug, thiserror::Error)]
pub enum VcpuStateError {
    /// An ioctl failed.
    #[error("KVM refused to {what}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// What KVM answered.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The extended registers are of another size.
    #[error(
        "The extended registers have {theirs} bytes there and {ours} here; use hosts of the same processor model"
    )]
    Extended {
        /// Of the state.
        theirs: usize,
        /// Of this host.
        ours: usize,
    },
    /// A register of the processor model cannot have this value here.
    #[error(
        "This host's KVM does not take {value:#x} for MSR {index:#x}; use hosts of the same processor model and kernel"
    )]
    Msr {
        /// Which.
        index: u32,
        /// What it should become.
        value: u64,
    },
}

pub(super) fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VcpuStateError {
    move |source| VcpuStateError::Refused { what, source }
}

impl Vcpu {
    /// Reads everything. The vCPU must stand between two instructions.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn state(&mut self, kvm: &Kvm, vm: &VmFd) -> Result<VcpuState, VcpuStateError> {
        let run = self.fd.get_kvm_run();
        let ready_for_interrupt = run.ready_for_interrupt_injection != 0;
        let interrupts_on = run.if_flag != 0;
        let fd = &self.fd;
        Ok(VcpuState {
            regs: fd.get_regs().map_err(refused("tell the general registers"))?,
            sregs: fd.get_sregs().map_err(refused("tell the special registers"))?,
            xsave: xsave::read(vm, fd).map_err(refused("tell the extended registers"))?,
            xcrs: fd
                .get_xcrs()
                .map_err(refused("tell the extended control registers"))?,
            debug: fd.get_debug_regs().map_err(refused("tell the debug registers"))?,
            msrs: self.msrs(kvm)?,
            events: fd.get_vcpu_events().map_err(refused("tell the pending events"))?,
            mp_state: fd.get_mp_state().map_err(refused("tell whether the vCPU runs"))?,
            ready_for_interrupt,
            interrupts_on,
        })
    }

    /// Becomes what the other vCPU was. This one has the same CPUID template and never ran.
    ///
    /// # Errors
    /// When this host's KVM does not take it.
    pub fn restore(&mut self, vm: &VmFd, state: &VcpuState) -> Result<(), VcpuStateError> {
        let (theirs, ours) = (state.xsave.len() * 4, xsave::words(vm) * 4);
        if theirs != ours {
            return Err(VcpuStateError::Extended { theirs, ours });
        }
        let fd = &self.fd;
        fd.set_sregs(&state.sregs)
            .map_err(refused("set the special registers"))?;
        fd.set_xcrs(&state.xcrs)
            .map_err(refused("set the extended control registers"))?;
        xsave::write(vm, fd, &state.xsave).map_err(refused("set the extended registers"))?;
        self.set_msrs(&state.msrs)?;
        fd.set_debug_regs(&state.debug)
            .map_err(refused("set the debug registers"))?;
        fd.set_regs(&state.regs)
            .map_err(refused("set the general registers"))?;
        fd.set_vcpu_events(&state.events)
            .map_err(refused("set the pending events"))?;
        fd.set_mp_state(state.mp_state)
            .map_err(refused("set whether the vCPU runs"))?;
        self.fd.sync_regs_mut().regs = state.regs;
        self.is_shown = true;
        let run = self.fd.get_kvm_run();
        run.ready_for_interrupt_injection = u8::from(state.ready_for_interrupt);
        run.if_flag = u8::from(state.interrupts_on);
        Ok(())
    }

    fn msrs(&self, kvm: &Kvm) -> Result<Vec<(u32, u64)>, VcpuStateError> {
        let list = kvm.get_msr_index_list().map_err(refused("list its MSRs"))?;
        let wanted: Vec<_> = list
            .as_slice()
            .iter()
            .copied()
            .filter(|msr| is_ours_to_copy(*msr))
            .collect();
        let (mut found, mut rest) = (Vec::with_capacity(wanted.len()), wanted.as_slice());
        while !rest.is_empty() {
            let mut block = block(rest.iter().map(|index| (*index, 0)));
            let read = self.fd.get_msrs(&mut block).map_err(refused("tell its MSRs"))?;
            found.extend(
                block
                    .as_slice()
                    .iter()
                    .take(read)
                    .map(|msr| (msr.index, msr.data)),
            );
            // KVM stops at one that it lists and does not have; nothing of the guest can be in it.
            rest = rest.get(read + 1..).unwrap_or_default();
        }
        Ok(found)
    }

    pub(super) fn set_msrs(&self, msrs: &[(u32, u64)]) -> Result<(), VcpuStateError> {
        let mut rest = msrs;
        while !rest.is_empty() {
            let block = block(rest.iter().copied());
            let set = self.fd.set_msrs(&block).map_err(refused("set its MSRs"))?;
            if let Some((index, value)) = rest.get(set).copied()
                && self.msr(index) != Some(value)
            {
                return Err(VcpuStateError::Msr { index, value });
            }
            rest = rest.get(set + 1..).unwrap_or_default();
        }
        Ok(())
    }

    pub(super) fn msr(&self, index: u32) -> Option<u64> {
        let mut one = block([(index, 0)].into_iter());
        let read = self.fd.get_msrs(&mut one).ok()?;
        one.as_slice().first().filter(|_| read == 1).map(|msr| msr.data)
    }
}

fn is_ours_to_copy(msr: u32) -> bool {
    !LEFT_OUT.iter().any(|range| range.contains(&msr))
}

pub(super) fn block(msrs: impl Iterator<Item = (u32, u64)>) -> Msrs {
    let entries: Vec<_> = msrs
        .map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&entries).expect("there are fewer MSRs than the ioctl takes")
}
