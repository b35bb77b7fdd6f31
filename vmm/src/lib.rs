//! The VMM of Lockstep. Read in this order, and you follow a VM from its configuration to its takeover:
//!
//! 1. [`config`] and [`run`]: what is run, and in which role.
//! 2. [`machine`]: what is built, on [`kvm`] and [`memory`], started by [`boot`], with a [`board`] and [`virtio`] windows.
//! 3. [`vcpu`]: from one synchronous exit to the next; several vCPUs, with KVM's own [`chips`], run in epochs.
//! 4. [`ft`]: what happens in the window between them, on a primary and on a backup.
//! 5. [`state`] and [`transfer`]: how a machine that runs comes to another host.
//! 6. [`status`] and [`cli`]: what people see of it.
#![deny(unsafe_code)]

// What the VMM and the micro guest agreed on; one text for both.
#[path = "../guest/src/abi.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::all,
    clippy::unwrap_used,
    reason = "each side uses its half; the guest's own lints judge it"
)]
pub mod abi;
pub mod board;
pub mod boot;
pub mod chips;
pub mod cli;
pub mod config;
pub mod console;
pub mod control;
pub mod cpuid;
pub mod errand;
pub mod ft;
pub mod hardware;
#[allow(unsafe_code, reason = "guest memory is handed to KVM as raw addresses")]
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod monitor;
pub mod run;
pub mod spawn;
pub mod state;
pub mod status;
pub mod stop;
pub mod transfer;
pub mod vcpu;
pub mod virtio;
