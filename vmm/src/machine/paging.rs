//! The guest's own view of its memory: a walk through its page tables, as its processor would make it.
//!
//! The code that takes back faults of user space looks at stacks and instructions with it. KVM's own translation will
//! not do: it heeds SMAP, under which the kernel's view ends where user space begins. Nothing here writes, not even the
//! accessed bits that a processor would set.

use crate::memory::GuestRam;
use kvm_bindings::kvm_sregs;
use vm_memory::{Bytes, GuestAddress};

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
/// Where a table or a page lies, in an entry and in CR3.
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const PAGE_BITS: u32 = 12;
/// Bits of an address that one level resolves.
const LEVEL_BITS: u32 = 9;
const CR4_LA57: u64 = 1 << 12;

/// The address space that the guest is in, in long mode.
#[derive(Clone, Copy, Debug)]
pub(super) struct AddressSpace<'a> {
    memory: &'a GuestRam,
    root: u64,
    levels: u32,
}

impl<'a> AddressSpace<'a> {
    /// The one that these registers select.
    pub(super) fn of(registers: &kvm_sregs, memory: &'a GuestRam) -> Self {
        Self {
            memory,
            root: registers.cr3 & FRAME,
            levels: if registers.cr4 & CR4_LA57 == 0 { 4 } else { 5 },
        }
    }

    /// Where in memory a linear address lies, if it is mapped.
    pub(super) fn place(&self, address: u64) -> Option<GuestAddress> {
        let mut table = self.root;
        for level in (0..self.levels).rev() {
            let shift = PAGE_BITS + level * LEVEL_BITS;
            let index = address >> shift & ((1 << LEVEL_BITS) - 1);
            let entry: u64 = self.memory.read_obj(GuestAddress(table + index * 8)).ok()?;
            if entry & PRESENT == 0 {
                return None;
            }
            if level == 0 || (level <= 2 && entry & LARGE != 0) {
                let within = (1 << shift) - 1;
                return Some(GuestAddress(entry & FRAME & !within | address & within));
            }
            table = entry & FRAME;
        }
        None
    }

    /// The bytes at a linear address; they may lie on two pages.
    pub(super) fn bytes<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        for (byte, at) in bytes.iter_mut().zip(0..) {
            *byte = self.memory.read_obj(self.place(address.wrapping_add(at))?).ok()?;
        }
        Some(bytes)
    }

    /// The words at a linear address that is a multiple of 8.
    pub(super) fn words<const N: usize>(&self, address: u64) -> Option<[u64; N]> {
        let mut words = [0; N];
        for (word, at) in words.iter_mut().zip((0..).step_by(8)) {
            *word = self.memory.read_obj(self.place(address.wrapping_add(at))?).ok()?;
        }
        Some(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: u64 = 0x7;

    /// Tables at 0x1000 to 0x4000; the pages at 0 and 0x1000 of `half` lie at 0x8000 and 0x6000.
    fn memory(half: u64) -> GuestRam {
        let memory = GuestRam::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let put = |table: u64, shift: u32, entry: u64| {
            let index = half >> shift & 0x1ff;
            memory.write_obj(entry, GuestAddress(table + index * 8)).unwrap();
        };
        put(0x1000, 39, 0x2000 | USER);
        put(0x2000, 30, 0x3000 | USER);
        put(0x3000, 21, 0x4000 | USER);
        memory
            .write_obj(0x8000 | USER | 1 << 63, GuestAddress(0x4000))
            .unwrap();
        memory.write_obj(0x6000 | USER, GuestAddress(0x4008)).unwrap();
        memory
    }

    fn registers() -> kvm_sregs {
        kvm_sregs {
            cr3: 0x1000 | 5,
            ..Default::default()
        }
    }

    #[test]
    fn both_halves_of_the_address_space_are_found_and_nothing_else() {
        for half in [0x7f00_0000_0000, 0xffff_8880_0000_0000] {
            let memory = memory(half);
            let space = AddressSpace::of(&registers(), &memory);
            assert_eq!(space.place(half + 0x123), Some(GuestAddress(0x8123)));
            assert_eq!(space.place(half + 0x2000), None);
            assert_eq!(space.place(half ^ 1 << 40), None);
        }
    }

    #[test]
    fn a_large_page_ends_the_walk() {
        let memory = memory(0);
        memory
            .write_obj(0x20_0000 | USER | LARGE, GuestAddress(0x3008))
            .unwrap();
        let space = AddressSpace::of(&registers(), &memory);
        assert_eq!(space.place(0x20_0000 + 0x1_2345), Some(GuestAddress(0x21_2345)));
    }

    #[test]
    fn an_instruction_may_lie_on_two_pages() {
        let memory = memory(0);
        memory.write_obj(0x0f_u8, GuestAddress(0x8fff)).unwrap();
        memory.write_obj(0x31_u8, GuestAddress(0x6000)).unwrap();
        assert_eq!(
            AddressSpace::of(&registers(), &memory).bytes(0xfff),
            Some([0x0f, 0x31])
        );
        assert_eq!(AddressSpace::of(&registers(), &memory).bytes::<2>(0x1fff), None);
    }

    #[test]
    fn tables_that_lie_outside_memory_map_nothing() {
        let memory = memory(0);
        memory
            .write_obj(0xffff_0000 | USER, GuestAddress(0x1000))
            .unwrap();
        assert_eq!(AddressSpace::of(&registers(), &memory).place(0), None);
    }
}
