//! The commands of `lockstep` that are neither the VM itself nor the demo: status, snapshot, check and
//! keys. `main.rs` calls one
//! function of one of these files; each prints its answer on standard output and returns the exit code.

pub mod check;
pub mod keys;
pub mod snapshot;
pub mod status;
