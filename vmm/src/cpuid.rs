//! What the guest sees of the processor: a fixed CPUID template. The machine builder asks for it once per VM, both hosts
//! compare its digest. It makes no vCPU.

use crate::kvm::KvmError;
use crate::vcpu::VcpuCount;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};
use xxhash_rust::xxh3::xxh3_128;
use zerocopy::IntoBytes;

/// How AMD's and Hygon's processors call themselves, in the first register of leaf 0.
const AMD: [u32; 2] = [0x6874_7541, 0x6f67_7948];

/// What the guest sees of the processor. With one vCPU, everything whose answer differs from run to run or host to host is
/// taken out; with several, only what differs from host to host.
#[derive(Debug)]
pub struct CpuTemplate {
    leaves: CpuId,
    vcpus: VcpuCount,
}

impl CpuTemplate {
    /// Reads what the host offers and applies the template's mask (design: "The deterministic board", point 3).
    ///
    /// # Errors
    /// When KVM will not tell what it supports.
    pub fn of_host(kvm: &Kvm, vcpus: VcpuCount) -> Result<Self, KvmError> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::refused("list its CPUID leaves"))?;
        let mask = if vcpus.is_several() {
            Mask::several(kvm, supported.as_slice(), vcpus)
        } else {
            Mask::One
        };
        let entries: Vec<_> = supported
            .as_slice()
            .iter()
            .filter_map(|leaf| mask.apply(leaf))
            .chain(kvm_leaves(vcpus))
            .collect();
        let leaves =
            CpuId::from_entries(&entries).expect("masking only removes leaves and two small ones are added");
        Ok(Self { leaves, vcpus })
    }

    /// The leaves of one vCPU: several differ in the number of their APIC.
    pub(crate) fn shown_to(&self, number: u8) -> CpuId {
        let mut leaves = self.leaves.clone();
        if self.vcpus.is_several() {
            let first = leaves.as_mut_slice().iter_mut().filter(|leaf| leaf.function == 1);
            first.for_each(|leaf| leaf.ebx |= u32::from(number) << 24);
        }
        leaves
    }

    /// A short word for the whole template: two hosts whose digests are equal show their guests the same processor.
    #[must_use]
    pub fn digest(&self) -> [u8; 16] {
        let mut words = Vec::new();
        for leaf in self.leaves.as_slice() {
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

/// How a host's leaves become the template's.
#[derive(Clone, Copy, Debug)]
enum Mask {
    /// Nothing that a backup could not recompute.
    One,
    /// What several vCPUs need.
    Several(Cores),
}

/// So many vCPUs, which are the cores of one processor.
#[derive(Clone, Copy, Debug)]
struct Cores {
    vcpus: u32,
    is_amd: bool,
    /// Their timers can be told a deadline. KVM says so apart from the leaves.
    has_deadlines: bool,
}

impl Mask {
    fn several(kvm: &Kvm, supported: &[kvm_cpuid_entry2], vcpus: VcpuCount) -> Self {
        let first = supported.iter().find(|leaf| leaf.function == 0);
        Self::Several(Cores {
            vcpus: vcpus.get().into(),
            is_amd: first.is_some_and(|leaf| AMD.contains(&leaf.ebx)),
            has_deadlines: kvm.check_extension(Cap::TscDeadlineTimer),
        })
    }

    fn apply(self, leaf: &kvm_cpuid_entry2) -> Option<kvm_cpuid_entry2> {
        let mut leaf = *leaf;
        match leaf.function {
            // No hypervisor leaves but our own two.
            0x4000_0000..=0x4000_ffff => return None,
            // Of several vCPUs, the timers never sleep.
            0x6 if matches!(self, Self::Several(_)) => {}
            // Leaves about where a vCPU runs, clocks, or counters: the answer depends on the host.
            0x5 | 0x6 | 0xa | 0xb | 0x15 | 0x16 | 0x1f | 0x8000_001e => return None,
            0x7 if leaf.index == 0 => {
                leaf.ebx &= !(bit(1) | bit(18)); // TSC_ADJUST, RDSEED
                leaf.ecx &= !bit(22); // RDPID
            }
            0x8000_0007 => leaf.edx = 0, // invariant TSC
            _ => {}
        }
        match self {
            Self::One => leaf.without_clocks(),
            Self::Several(cores) => leaf.with_cores(cores),
        }
        Some(leaf)
    }
}

trait Leaf {
    fn without_clocks(&mut self);
    fn with_cores(&mut self, cores: Cores);
}

impl Leaf for kvm_cpuid_entry2 {
    fn without_clocks(&mut self) {
        match self.function {
            0x1 => {
                self.edx &= !(bit(4) | bit(9)); // TSC, APIC
                self.ecx &= !(bit(3) | bit(21) | bit(24) | bit(30)); // MONITOR, x2APIC, TSC-deadline, RDRAND
                self.ecx |= bit(31); // hypervisor present
                self.ebx &= 0xffff; // APIC id and logical count
            }
            0x7 if self.index == 0 => {
                self.ebx &= !(bit(4) | bit(11)); // HLE, RTM: transactions end when they like
                self.ecx &= !bit(5); // WAITPKG: waits by the TSC
            }
            0x8000_0001 => {
                self.edx &= !(bit(4) | bit(9) | bit(27)); // TSC, APIC, RDTSCP
            }
            _ => {}
        }
    }

    fn with_cores(&mut self, cores: Cores) {
        let Cores { vcpus, is_amd, .. } = cores;
        match self.function {
            0x1 => {
                self.ecx &= !(bit(3) | bit(24)); // MONITOR, TSC-deadline
                self.ecx |= bit(31); // hypervisor present
                if cores.has_deadlines {
                    // Without them a kernel measures its timers at boot, and gives them up where it stood still meanwhile.
                    self.ecx |= bit(24);
                }
                self.edx |= bit(28); // several logical processors
                self.ebx = self.ebx & 0xffff | vcpus << 16;
            }
            // So many cores share a cache, as Intel says it.
            0x4 => self.eax = self.eax & 0x03ff_ffff | (vcpus - 1) << 26,
            0x8000_0001 => {
                self.edx &= !bit(27); // RDTSCP
                self.ecx &= !bit(22); // topology extensions
                if is_amd {
                    self.ecx |= bit(1); // the logical processors are cores
                }
            }
            0x8000_0008 if is_amd => self.ecx = vcpus - 1,
            _ => {}
        }
    }
}

/// "KVMKVMKVM", and what of its features the guest may use (Documentation/virt/kvm/x86/cpuid.rst).
fn kvm_leaves(vcpus: VcpuCount) -> [kvm_cpuid_entry2; 2] {
    let signature = kvm_cpuid_entry2 {
        function: 0x4000_0000,
        eax: 0x4000_0001,
        ebx: 0x4b4d_564b,
        ecx: 0x564b_4d56,
        edx: 0x4d,
        ..Default::default()
    };
    // NOP_IO_DELAY, CLOCKSOURCE2, CLOCKSOURCE_STABLE_BIT.
    let mut features = bit(1) | bit(3) | bit(24);
    if vcpus.is_several() {
        // PV_UNHALT: whoever waits for a lock sleeps, for its holder may not be running.
        features |= bit(7);
    }
    let features = kvm_cpuid_entry2 {
        function: 0x4000_0001,
        eax: features,
        ..Default::default()
    };
    [signature, features]
}

const fn bit(n: u32) -> u32 {
    1 << n
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a guest with one vCPU sees of a leaf in which the host has every bit set.
    fn shown(function: u32, index: u32) -> Option<kvm_cpuid_entry2> {
        Mask::One.apply(&full(function, index))
    }

    fn full(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: !0,
            ebx: !0,
            ecx: !0,
            edx: !0,
            ..Default::default()
        }
    }

    /// The registers without the bits that must be hidden; everything else has to be there.
    fn all_but(eax: u32, ebx: u32, ecx: u32, edx: u32) -> [u32; 4] {
        [!eax, !ebx, !ecx, !edx]
    }

    fn registers(leaf: Option<kvm_cpuid_entry2>) -> [u32; 4] {
        let leaf = leaf.unwrap();
        [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
    }

    #[test]
    fn the_first_leaf_hides_rdrand_the_counter_the_apic_and_who_the_vcpu_is() {
        let (monitor, x2apic, deadline, rdrand) = (bit(3), bit(21), bit(24), bit(30));
        let (tsc, apic) = (bit(4), bit(9));
        let who = 0xffff_0000;
        assert_eq!(
            registers(shown(1, 0)),
            all_but(0, who, monitor | x2apic | deadline | rdrand, tsc | apic)
        );
    }

    #[test]
    fn a_guest_sees_that_it_is_one_even_where_the_host_is_none() {
        let bare = kvm_cpuid_entry2 {
            function: 1,
            ..Default::default()
        };
        assert_eq!(registers(Mask::One.apply(&bare)), [0, 0, bit(31), 0]);
    }

    #[test]
    fn the_seventh_leaf_hides_rdseed_rdpid_transactions_and_what_has_to_do_with_the_counter() {
        let (adjust, hle, rtm, rdseed) = (bit(1), bit(4), bit(11), bit(18));
        let (waitpkg, rdpid) = (bit(5), bit(22));
        assert_eq!(
            registers(shown(7, 0)),
            all_but(0, adjust | hle | rtm | rdseed, waitpkg | rdpid, 0)
        );
        // The same bits of the next subleaf mean something else.
        assert_eq!(registers(shown(7, 1)), [!0; 4]);
    }

    #[test]
    fn the_extended_leaves_hide_rdtscp_and_that_the_counter_never_varies() {
        let (tsc, apic, rdtscp) = (bit(4), bit(9), bit(27));
        assert_eq!(
            registers(shown(0x8000_0001, 0)),
            all_but(0, 0, 0, tsc | apic | rdtscp)
        );
        assert_eq!(registers(shown(0x8000_0007, 0)), all_but(0, 0, 0, !0));
    }

    #[test]
    fn leaves_about_clocks_counters_topology_and_hypervisors_are_gone() {
        let (clocks, counters) = ([0x15, 0x16], [0xa]);
        let (topology, sleep) = ([0xb, 0x1f, 0x8000_001e], [0x5, 0x6]);
        let hypervisors = [0x4000_0000, 0x4000_0001, 0x4000_0010, 0x4000_ffff];
        let gone: Vec<_> = [&clocks[..], &counters, &topology, &sleep, &hypervisors].concat();
        let seen: Vec<_> = gone.iter().filter_map(|leaf| shown(*leaf, 0)).collect();
        assert!(seen.is_empty(), "{seen:x?}");
    }

    #[test]
    fn what_differs_nowhere_is_shown_as_it_is() {
        let seen = [0x0, 0xd, 0x8000_0000, 0x8000_0002].map(|leaf| registers(shown(leaf, 0)));
        assert_eq!(seen, [[!0; 4]; 4]);
    }

    #[test]
    fn of_kvms_own_leaves_a_guest_with_one_vcpu_finds_the_clock_and_nothing_that_needs_the_host() {
        let [signature, features] = kvm_leaves(VcpuCount::ONE);
        assert_eq!((signature.function, signature.eax), (0x4000_0000, 0x4000_0001));
        let (no_io_delay, clock, stable) = (bit(1), bit(3), bit(24));
        assert_eq!(
            (features.function, features.eax),
            (0x4000_0001, no_io_delay | clock | stable)
        );
    }
}
