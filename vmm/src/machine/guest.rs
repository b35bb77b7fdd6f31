//! What a machine boots: at its power-on, and again whenever its guest restarts.
//!
//! A kernel has to be prepared before it is placed. That is done once in a machine's life, for it takes longer than the rest;
//! a machine that was running when it came to this host has no use for it before its guest restarts.

use crate::boot::linux::{self, LinuxError};
use crate::vcpu::VcpuCount;
use std::sync::Arc;

/// What a machine boots.
#[derive(Clone, Debug)]
pub enum Guest {
    /// The micro guest, an ELF file.
    Micro(&'static [u8]),
    /// Stock Linux: a vmlinux or bzImage, and its initial file system, which may be empty.
    Linux {
        /// The kernel.
        kernel: Arc<[u8]>,
        /// The archive that it unpacks into its first root.
        initrd: Arc<[u8]>,
    },
}

/// A guest that can be placed as it is, or will be when it is asked for.
#[derive(Debug)]
pub(super) struct Bootable {
    guest: Guest,
    is_prepared: bool,
}

impl Bootable {
    /// One that is not needed yet.
    pub(super) fn later(guest: Guest) -> Self {
        Self {
            guest,
            is_prepared: false,
        }
    }

    /// The guest, to be placed in a machine with so many vCPUs. The first time takes longer.
    ///
    /// # Errors
    /// When its kernel is none.
    pub(super) fn prepared(&mut self, vcpus: VcpuCount) -> Result<&Guest, LinuxError> {
        if !self.is_prepared {
            if let Guest::Linux { kernel, .. } = &mut self.guest {
                *kernel = linux::prepare(kernel, vcpus)?.into();
            }
            self.is_prepared = true;
        }
        Ok(&self.guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::MICRO_GUEST;

    fn kernel(guest: &Guest) -> &Arc<[u8]> {
        match guest {
            Guest::Linux { kernel, .. } => kernel,
            Guest::Micro(_) => panic!("This is no Linux"),
        }
    }

    // To whom only bytes are of interest, the micro guest is a kernel with a `rdtsc` in it.
    #[test]
    fn a_kernel_that_came_with_a_running_machine_is_prepared_once_and_before_it_boots() {
        let mut bootable = Bootable::later(Guest::Linux {
            kernel: MICRO_GUEST.into(),
            initrd: [].into(),
        });
        let first = Arc::clone(kernel(bootable.prepared(VcpuCount::ONE).unwrap()));
        assert_ne!(*first, *MICRO_GUEST);
        let second = kernel(bootable.prepared(VcpuCount::ONE).unwrap());
        assert!(Arc::ptr_eq(&first, second));
    }

    #[test]
    fn what_is_no_kernel_is_refused_when_it_is_needed() {
        let mut bootable = Bootable::later(Guest::Linux {
            kernel: (*b"no kernel").into(),
            initrd: [].into(),
        });
        assert!(bootable.prepared(VcpuCount::ONE).is_err());
    }
}
