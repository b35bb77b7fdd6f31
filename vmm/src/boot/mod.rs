//! How a VM comes to its first instruction. [`flat`] is the micro guest's way, [`linux`] that of stock kernels.

pub mod acpi;
pub mod bzimage;
pub mod flat;
pub mod linux;
pub mod rewrite;
