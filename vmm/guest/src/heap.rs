//! The heap: all RAM beyond the image. Generated code allocates from it; the image claims the memory once at power-on and
//! asks how much is left. Unsafe code lives here: it is the allocator.

use core::alloc::{GlobalAlloc, Layout};

use talc::TalcCell;
use talc::source::Manual;

#[global_allocator]
static HEAP: Heap = Heap(TalcCell::new(Manual));

struct Heap(TalcCell<Manual>);

// SAFETY: there is one vCPU and nothing ever interrupts it, so there is one thread.
unsafe impl Sync for Heap {}

// SAFETY: every method hands over to talc, which fulfils the contract.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.0.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.0.realloc(memory, layout, size) }
    }
}

/// Gives memory to the heap.
///
/// # Safety
/// The range must be RAM that nothing else uses, now or later.
pub(crate) unsafe fn claim(start: usize, bytes: usize) {
    // SAFETY: the caller's promise is passed on.
    let end = unsafe { HEAP.0.claim(core::ptr::with_exposed_provenance_mut(start), bytes) };
    assert!(end.is_some(), "the RAM beyond the image is too small for a heap");
}

/// Bytes not allocated.
pub(crate) fn free() -> usize {
    HEAP.0.counters().available_bytes
}
