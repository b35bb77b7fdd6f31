//! The extended registers of the vCPU, in as many words as this host's KVM keeps. Only `vcpu/state.rs` calls it.
//!
//! kvm-ioctls leaves it to its callers that the buffer is as large as KVM copies.
#![allow(unsafe_code, reason = "KVM copies as much as it keeps, whatever the buffer")]

use kvm_bindings::{Xsave, kvm_xsave};
use kvm_ioctls::{Cap, Error, VcpuFd, VmFd};

/// Words of the area that every KVM has.
const PLAIN_WORDS: usize = 1024;
const WORD_BYTES: usize = 4;

/// How many words this host keeps for a vCPU.
pub(super) fn words(vm: &VmFd) -> usize {
    let bytes = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
    bytes.div_ceil(WORD_BYTES).max(PLAIN_WORDS)
}

/// Reads them.
pub(super) fn read(vm: &VmFd, vcpu: &VcpuFd) -> Result<Vec<u32>, Error> {
    if vm.check_extension_int(Cap::Xsave2) <= 0 {
        return Ok(vcpu.get_xsave()?.region.to_vec());
    }
    let mut area = Xsave::new(words(vm) - PLAIN_WORDS).map_err(|_| Error::new(libc::ENOMEM))?;
    // SAFETY: the area has room for as many bytes as KVM_CAP_XSAVE2 says, rounded up to words; nothing in this process
    // enables features by arch_prctl, so KVM copies no more.
    unsafe { vcpu.get_xsave2(&mut area) }?;
    let plain = area.as_fam_struct_ref().xsave.region;
    Ok([&plain, area.as_slice()].concat())
}

/// Sets them; their number must be this host's.
pub(super) fn write(vm: &VmFd, vcpu: &VcpuFd, all: &[u32]) -> Result<(), Error> {
    let size = words(vm);
    let (Some((plain, extra)), true) = (all.split_first_chunk::<PLAIN_WORDS>(), all.len() == size) else {
        return Err(Error::new(libc::EINVAL));
    };
    let mut area = Xsave::new(size - PLAIN_WORDS).map_err(|_| Error::new(libc::ENOMEM))?;
    area.as_mut_slice().copy_from_slice(extra);
    let head = kvm_xsave {
        region: *plain,
        ..Default::default()
    };
    set_plain(&mut area, &head);
    // SAFETY: the area has as many bytes as KVM_CAP_XSAVE2 says, or the 4096 that a KVM without it copies; nothing in
    // this process enables features by arch_prctl, so KVM reads no more.
    unsafe { vcpu.set_xsave2(&area) }
}

fn set_plain(area: &mut Xsave, head: &kvm_xsave) {
    // SAFETY: only the plain words change; the length of what follows them stays as it was allocated.
    let target = unsafe { area.as_mut_fam_struct() };
    target.xsave.region = head.region;
}
