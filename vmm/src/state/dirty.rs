//! Which pages of guest memory were written since somebody last asked: the guest's writes as KVM notes them, and the
//! VMM's own, which the memory's bitmap notes.
//!
//! Whoever copies a running machine holds a [`WriteTracker`], on any thread. It never stops the guest.

use crate::kvm::{self, KvmError};
use crate::memory::GuestRam;
use kvm_ioctls::VmFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MmapRegion};

/// The number of a page of guest memory: its address is so many pages above 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Page(u64);

impl Page {
    /// Bytes of a page.
    pub const BYTES: usize = 4096;

    /// Page `number`.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Where it begins.
    #[must_use]
    pub const fn address(self) -> GuestAddress {
        GuestAddress(self.0 * Self::BYTES as u64)
    }
}

/// Notes written pages for as long as it lives.
#[derive(Debug)]
pub struct WriteTracker {
    // Declared before the memory: the VM with its slots is gone before the mapping is.
    vm: Arc<VmFd>,
    memory: Arc<GuestRam>,
    /// Set while a tracker of this VM lives.
    tracked: Arc<AtomicBool>,
}

impl WriteTracker {
    pub(crate) fn start(
        vm: Arc<VmFd>,
        memory: Arc<GuestRam>,
        tracked: Arc<AtomicBool>,
    ) -> Result<Self, KvmError> {
        if tracked.swap(true, Ordering::AcqRel) {
            return Err(KvmError::Tracked);
        }
        let tracker = Self { vm, memory, tracked };
        for region in tracker.memory.iter() {
            MmapRegion::bitmap(region).reset();
        }
        kvm::log_writes(&tracker.vm, &tracker.memory, true)?;
        Ok(tracker)
    }

    /// Pages written since the last call (or since tracking began), by the guest and by the VMM, in ascending order;
    /// clears them. What is written meanwhile is in this answer or in the next one.
    ///
    /// # Errors
    /// When KVM does not tell.
    pub fn take(&self) -> Result<Vec<Page>, KvmError> {
        let mut pages = Vec::new();
        for (slot, region) in (0_u32..).zip(self.memory.iter()) {
            let bytes = usize::try_from(region.len()).expect("this crate is for 64-bit hosts");
            let by_guest = kvm::take_written(&self.vm, slot, bytes)?;
            let by_vmm = MmapRegion::bitmap(region).get_and_reset();
            let first = region.start_addr().0 / Page::BYTES as u64;
            let words = by_guest.iter().zip(by_vmm).map(|(guest, vmm)| guest | vmm);
            for (word, base) in words.zip((first..).step_by(64)) {
                pages.extend(bits(word).map(|bit| Page(base + u64::from(bit))));
            }
        }
        Ok(pages)
    }

    /// Ends it.
    pub fn stop(self) {}
}

impl Drop for WriteTracker {
    fn drop(&mut self) {
        // A KVM that notes more than anybody asks for costs time and nothing else.
        if let Err(error) = kvm::log_writes(&self.vm, &self.memory, false) {
            tracing::warn!(%error, "KVM still notes which pages the guest writes");
        }
        self.tracked.store(false, Ordering::Release);
    }
}

/// The numbers of the bits that are set, lowest first.
fn bits(word: u64) -> impl Iterator<Item = u32> {
    std::iter::successors(Some(word), |rest| Some(rest & rest.wrapping_sub(1)))
        .take_while(|rest| *rest != 0)
        .map(u64::trailing_zeros)
}
