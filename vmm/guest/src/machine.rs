//! The memory that the VMM laid out: boot page, clock page, device registers and the RAM beyond the image. The image asks
//! for each once at power-on, and for the time once per round. Unsafe code lives here: these are bare addresses, and
//! abi.rs is the promise that something is there.

use core::ptr;

use lockstep_guest::abi::{self, BootPage};
use lockstep_guest::units::Time;
use lockstep_guest::virtio::mmio::{REGISTER_BYTES, Registers};

use crate::heap;

unsafe extern "C" {
    /// Set by the linker script, on a page boundary.
    static __image_end: u8;
}

/// The boot page.
pub(crate) fn boot_page() -> BootPage<'static> {
    // SAFETY: abi.rs promises a boot page there, in readable RAM that nobody ever writes again.
    let bytes = unsafe {
        core::slice::from_raw_parts(
            ptr::with_exposed_provenance::<u8>(abi::BOOT_PAGE as usize),
            abi::BOOT_PAGE_BYTES,
        )
    };
    match BootPage::decode(bytes) {
        Ok(page) => page,
        Err(error) => panic!("the boot page is wrong: {error:?}"),
    }
}

/// Gives all RAM beyond the image to the heap; answers how much it is.
pub(crate) fn claim_ram(boot: &BootPage<'_>) -> usize {
    assert!(
        (abi::MIN_MEM_SIZE..=abi::MAX_MEM_SIZE).contains(&boot.mem_size),
        "{} bytes of RAM are too few or too many",
        boot.mem_size
    );
    let start = (&raw const __image_end).expose_provenance();
    let bytes = boot.mem_size as usize - start;
    // SAFETY: abi.rs gives everything from the image up to `mem_size` to the guest; the image ends here, and this is
    // called once, before anything is allocated.
    unsafe { heap::claim(start, bytes) };
    bytes
}

/// The clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(usize);

impl Clock {
    /// The clock that the boot page names.
    pub(crate) fn new(boot: &BootPage<'_>) -> Self {
        let address = boot.clock_page + abi::CLOCK_SYSTEM_TIME_OFFSET;
        assert!(
            address.is_multiple_of(8) && address < boot.mem_size,
            "the clock page is not in RAM"
        );
        Clock(address as usize)
    }

    /// Guest time. It stands still between two exits.
    pub(crate) fn now(self) -> Time {
        // SAFETY: the address is aligned and in RAM; the VMM writes there only while the vCPU is stopped.
        Time::from_nanos(unsafe { ptr::with_exposed_provenance::<u64>(self.0).read_volatile() })
    }
}

/// The processor's time-stamp counter: no exit, and on no two hosts the same.
pub(crate) fn counter() -> u64 {
    // SAFETY: every x86-64 processor has it, and nothing here forbids it to ring 3 (CR4.TSD is clear).
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// A device's registers, if the boot page names the device.
pub(crate) fn registers(address: u64) -> Option<Registers> {
    const _: () = assert!(REGISTER_BYTES <= abi::MMIO_BYTES as usize);
    assert!(
        address.is_multiple_of(8) && address < 1 << 32,
        "a device's registers are out of reach"
    );
    // SAFETY: abi.rs promises registers at the address when it is not zero; each device is asked for once.
    (address != 0).then(|| unsafe { Registers::at(address as usize) })
}
