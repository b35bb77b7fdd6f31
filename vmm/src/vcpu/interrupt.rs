//! `KVM_INTERRUPT`, which kvm-ioctls does not wrap: the one ioctl of the vCPU that is made here by hand.
//! Only the vCPU calls it, in windows in which the guest can take an interrupt.
#![allow(unsafe_code, reason = "an ioctl on a raw file descriptor")]

use kvm_bindings::{KVMIO, kvm_interrupt};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::{errno, ioctl_iow_nr};

ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);

/// Queues interrupt `vector`, to be taken before the next instruction.
pub(super) fn queue(vcpu: &VcpuFd, vector: u8) -> Result<(), errno::Error> {
    let interrupt = kvm_interrupt {
        irq: u32::from(vector),
    };
    // SAFETY: the file is a vCPU, and KVM only reads the structure, which lives through the call.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_INTERRUPT(), &interrupt) };
    if result == 0 {
        Ok(())
    } else {
        Err(errno::Error::last())
    }
}
