//! `/dev/kvm` and what Lockstep asks of it: the capabilities, the VM with its memory slot, and the fixed CPUID template.
//! The machine builder calls it once per run. It never runs a vCPU and never touches guest memory.

use crate::board::clock::MSR_WALL_CLOCK;
use crate::board::pc::MSR_TSC;
use crate::memory::GuestRam;
use kvm_bindings::{
    CpuId, KVM_CAP_X86_USER_SPACE_MSR, KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MSR_EXIT_REASON_FILTER, kvm_cpuid_entry2, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use std::io;
use std::path::Path;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use xxhash_rust::xxh3::xxh3_128;
use zerocopy::IntoBytes;

/// Where KVM may put the pages it needs for real mode on Intel: below 4 GiB, away from memory and devices.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// The only version of the KVM API there has been since 2007.
const API_VERSION: i32 = 12;

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
    fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Refused { what, source }
    }
}

/// The capabilities without which a VM cannot be built, by the name users find in the kernel's documentation.
pub const NEEDED: [(Cap, &str); 4] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
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

/// Makes the VM: no in-kernel interrupt controller or timer, one memory slot per region.
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

/// Makes the one vCPU and gives it the template.
///
/// # Errors
/// When KVM refuses the vCPU or the template.
pub fn create_vcpu(vm: &VmFd, template: &CpuTemplate) -> Result<VcpuFd, KvmError> {
    let vcpu = vm.create_vcpu(0).map_err(KvmError::refused("create a vCPU"))?;
    vcpu.set_cpuid2(&template.0)
        .map_err(KvmError::refused("take the CPUID template"))?;
    Ok(vcpu)
}

/// What the guest sees of the processor: everything whose answer differs from run to run or host to host is taken out.
#[derive(Debug)]
pub struct CpuTemplate(CpuId);

impl CpuTemplate {
    /// Reads what the host offers and applies the template's mask (design: "The deterministic board", point 3).
    ///
    /// # Errors
    /// When KVM will not tell what it supports.
    pub fn of_host(kvm: &Kvm) -> Result<Self, KvmError> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::refused("list its CPUID leaves"))?;
        let entries: Vec<_> = supported
            .as_slice()
            .iter()
            .filter_map(mask_leaf)
            .chain(clock_leaves())
            .collect();
        let cpuid =
            CpuId::from_entries(&entries).expect("masking only removes leaves and two small ones are added");
        Ok(Self(cpuid))
    }

    /// A short word for the whole template: two hosts whose digests are equal show their guests the same processor.
    #[must_use]
    pub fn digest(&self) -> [u8; 16] {
        let mut words = Vec::new();
        for leaf in self.0.as_slice() {
            words.extend([
                leaf.function,
                leaf.index,
                leaf.flags,
                leaf.eax,
                leaf.ebx,
                leaf.ecx,
                leaf.edx,
            ]);
        }
        xxh3_128(words.as_bytes()).to_le_bytes()
    }
}

fn mask_leaf(leaf: &kvm_cpuid_entry2) -> Option<kvm_cpuid_entry2> {
    let mut leaf = *leaf;
    match leaf.function {
        // No hypervisor leaves but our own two.
        0x4000_0000..=0x4000_ffff => return None,
        // Leaves about where a vCPU runs, clocks, or counters: the answer depends on the host.
        0x5 | 0x6 | 0xa | 0xb | 0x15 | 0x16 | 0x1f | 0x8000_001e => return None,
        0x1 => {
            leaf.edx &= !(bit(4) | bit(9)); // TSC, APIC
            leaf.ecx &= !(bit(3) | bit(21) | bit(24) | bit(30)); // MONITOR, x2APIC, TSC-deadline, RDRAND
            leaf.ecx |= bit(31); // hypervisor present
            leaf.ebx &= 0xffff; // APIC id and logical count
        }
        0x7 if leaf.index == 0 => {
            leaf.ebx &= !(bit(1) | bit(18)); // TSC_ADJUST, RDSEED
            leaf.ecx &= !bit(22); // RDPID
        }
        0x8000_0001 => {
            leaf.edx &= !(bit(4) | bit(9) | bit(27)); // TSC, APIC, RDTSCP
        }
        0x8000_0007 => leaf.edx = 0, // invariant TSC
        _ => {}
    }
    Some(leaf)
}

fn clock_leaves() -> [kvm_cpuid_entry2; 2] {
    // "KVMKVMKVM" and NOP_IO_DELAY | CLOCKSOURCE2 | CLOCKSOURCE_STABLE_BIT (Documentation/virt/kvm/x86/cpuid.rst).
    let signature = kvm_cpuid_entry2 {
        function: 0x4000_0000,
        eax: 0x4000_0001,
        ebx: 0x4b4d_564b,
        ecx: 0x564b_4d56,
        edx: 0x4d,
        ..Default::default()
    };
    let features = kvm_cpuid_entry2 {
        function: 0x4000_0001,
        eax: bit(1) | bit(3) | bit(24),
        ..Default::default()
    };
    [signature, features]
}

const fn bit(n: u32) -> u32 {
    1 << n
}
