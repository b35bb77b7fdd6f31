//! The suite `qemu-plain`: vhost-blk-ft and vhost-net-ft as plain back-ends of a stock QEMU with a stock Debian kernel.
//!
//! Read in this order: [`suite`] (what `cargo xtask qemu-plain` does), [`packages`] (where QEMU and the kernel come
//! from), [`initramfs`] (what the guest does), [`machine`] (QEMU and its console), [`processes`] (what must not outlive
//! the test). The story itself is `tests/qemu_plain.rs`.

pub mod initramfs;
pub mod machine;
pub mod packages;
pub mod processes;
pub mod suite;
