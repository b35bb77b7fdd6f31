//! Virtio over MMIO, polled: the register file, the split queue, and the two devices that the guest has.

pub mod blk;
pub mod mmio;
pub mod net;
mod offload;
pub mod queue;
