//! How a VM comes to its first instruction. [`flat`] is the micro guest's way; stock Linux has its own later.

pub mod flat;
