//! What KVM makes for a machine: the VM with its memory, KVM's own chips if there are several vCPUs, and the vCPUs, whose
//! registers are not set. A machine that is built and one that is restored both begin with it. Nothing runs here.

use super::vcpus::Vcpus;
use crate::chips::{self, ChipsError};
use crate::cpuid::CpuTemplate;
use crate::kvm::{self, KvmError};
use crate::memory::GuestRam;
use crate::vcpu::{Pulse, Vcpu, VcpuCount};
use kvm_ioctls::{VcpuFd, VmFd};
use std::sync::Arc;

/// A VM with its vCPUs.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) vm: VmFd,
    pub(super) template: CpuTemplate,
    /// In the order of their numbers; at least one.
    pub(super) vcpus: Vec<VcpuFd>,
}

impl Made {
    /// In `memory`, for a guest that `is_linux` or not.
    pub(super) fn new<E>(memory: &GuestRam, count: VcpuCount, is_linux: bool) -> Result<Self, E>
    where
        E: From<KvmError> + From<ChipsError>,
    {
        let kvm = kvm::open()?;
        let vm = kvm::create_vm(&kvm, memory)?;
        let template = CpuTemplate::of_host(&kvm, count)?;
        if count.is_several() {
            chips::create(&kvm, &vm)?;
        } else if is_linux {
            kvm::filter_clocks(&vm)?;
        }
        let vcpus = (0..count.get())
            .map(|number| kvm::create_vcpu(&vm, number, &template))
            .collect::<Result<_, _>>()?;
        Ok(Self { vm, template, vcpus })
    }

    /// The VM, and its vCPUs as the machine runs them.
    pub(super) fn into_parts(self, pulse: &Arc<Pulse>) -> (VmFd, Vcpus) {
        let vcpus = self
            .vcpus
            .into_iter()
            .map(|file| Vcpu::new(file, Arc::clone(pulse)));
        (self.vm, Vcpus::new(vcpus.collect()))
    }
}
