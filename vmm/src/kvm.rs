//! `/dev/kvm` and what Lockstep asks of it: the capabilities, and the VM with its memory slot and vCPUs.
//! The machine builder calls it once per run. It never runs a vCPU and never touches guest memory.

use crate::board::clock::MSR_WALL_CLOCK;
use crate::board::pc::MSR_TSC;
use crate::cpuid::CpuTemplate;
use crate::memory::GuestRam;
use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MEM_LOG_DIRTY_PAGES, KVM_MSR_EXIT_REASON_FILTER, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use std::io;
use std::path::Path;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

/// Where KVM may put the pages it needs for real mode on Intel: below 4 GiB, away from memory and devices.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// The only version of the KVM API there has been since 2007.
pub const API_VERSION: i32 = 12;

/// Why this host's KVM cannot run the VM.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The device file is missing.
    #[error("There is no /dev/kvm; load the kvm module or enable virtualization in the firmware")]
    Missing,
    /// The device file may not be opened.
    #[error("Permission to open /dev/kvm is denied; add this user to the group that owns it")]
    Denied,
    /// Any other failure to open it.
    #[error("Cannot open /dev/kvm")]
    Open(#[source] kvm_ioctls::Error),
    /// A KVM that speaks another API.
    #[error("This KVM speaks API version {0}, Lockstep needs {API_VERSION}")]
    Version(i32),
    /// A capability is missing.
    #[error("This KVM lacks {0}; a newer kernel has it")]
    Capability(&'static str),
    /// Two cannot both clear what was noted.
    #[error("The written pages of this VM are tracked already")]
    Tracked,
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

impl KvmError {
    pub(crate) fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Refused { what, source }
    }
}

/// The capabilities without which a VM cannot be built, by the name users find in the kernel's documentation.
pub const NEEDED: [(Cap, &str); 5] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::X86UserSpaceMsr, "KVM_CAP_X86_USER_SPACE_MSR"),
];

/// Opens `/dev/kvm` and checks that it has what Lockstep needs.
///
/// # Errors
/// When it is missing, forbidden, of another API or without a needed capability.
pub fn open() -> Result<Kvm, KvmError> {
    let path = Path::new("/dev/kvm");
    if !path.exists() {
        return Err(KvmError::Missing);
    }
    let kvm = Kvm::new().map_err(|error| match io::Error::from_raw_os_error(error.errno()).kind() {
        io::ErrorKind::PermissionDenied => KvmError::Denied,
        _ => KvmError::Open(error),
    })?;
    if kvm.get_api_version() != API_VERSION {
        return Err(KvmError::Version(kvm.get_api_version()));
    }
    for (cap, name) in NEEDED {
        if !kvm.check_extension(cap) {
            return Err(KvmError::Capability(name));
        }
    }
    Ok(kvm)
}

/// Makes the VM: no in-kernel interrupt controller or timer yet, one memory slot per region.
///
/// The slots stay valid for as long as the VM is used because the caller keeps `memory` beside the returned file.
///
/// # Errors
/// When KVM refuses one of the steps.
pub fn create_vm(kvm: &Kvm, memory: &GuestRam) -> Result<VmFd, KvmError> {
    let vm = kvm.create_vm().map_err(KvmError::refused("create a VM"))?;
    vm.set_tss_address(TSS_ADDRESS)
        .map_err(KvmError::refused("place the TSS pages"))?;
    set_slots(&vm, memory, 0).map_err(KvmError::refused("take the guest memory"))?;
    Ok(vm)
}

/// From now on KVM notes which pages the guest writes, or does so no longer.
///
/// `memory` is the one that the VM was created with; its slots stay where they are.
///
/// # Errors
/// When KVM refuses.
pub fn log_writes(vm: &VmFd, memory: &GuestRam, on: bool) -> Result<(), KvmError> {
    let flags = if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
    set_slots(vm, memory, flags).map_err(KvmError::refused("note which pages the guest writes"))
}

/// A bit for every page of region `slot` that the guest wrote since the last call; clears them.
///
/// # Errors
/// When KVM refuses, or notes no writes.
pub fn take_written(vm: &VmFd, slot: u32, bytes: usize) -> Result<Vec<u64>, KvmError> {
    vm.get_dirty_log(slot, bytes)
        .map_err(KvmError::refused("tell which pages the guest wrote"))
}

fn set_slots(vm: &VmFd, memory: &GuestRam, flags: u32) -> Result<(), kvm_ioctls::Error> {
    for (slot, region) in (0_u32..).zip(memory.iter()) {
        let host = region
            .get_host_address(MemoryRegionAddress(0))
            .expect("address 0 is inside every region, which is never empty");
        let slot = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: host as u64,
        };
        // SAFETY: the range is one live mapping of `region.len()` bytes; whoever holds the VM, the machine or a write
        // tracker, holds a clone of `memory` too, so the mapping outlives the slot, and the slots of distinct regions do
        // not overlap.
        unsafe { vm.set_user_memory_region(slot) }?;
    }
    Ok(())
}

/// Makes the MSRs whose answers would come from the host's clock exit to us: KVM's own clock never runs.
///
/// # Errors
/// When this KVM cannot do that.
pub fn filter_clocks(vm: &VmFd) -> Result<(), KvmError> {
    let exits = kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        args: [u64::from(KVM_MSR_EXIT_REASON_FILTER), 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&exits)
        .map_err(KvmError::refused("pass MSR accesses on"))?;
    let denied = |base, msr_count| MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base,
        msr_count,
        bitmap: &[0],
    };
    let clocks = [denied(MSR_WALL_CLOCK, 2), denied(MSR_TSC, 1)];
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &clocks)
        .map_err(KvmError::refused("filter the clock MSRs"))
}

/// Makes vCPU `number` and gives it the template.
///
/// # Errors
/// When KVM refuses the vCPU or the template.
pub fn create_vcpu(vm: &VmFd, number: u8, template: &CpuTemplate) -> Result<VcpuFd, KvmError> {
    let vcpu = vm
        .create_vcpu(number.into())
        .map_err(KvmError::refused("create a vCPU"))?;
    vcpu.set_cpuid2(&template.shown_to(number))
        .map_err(KvmError::refused("take the CPUID template"))?;
    Ok(vcpu)
}
