//! vhost-blk-ft: a virtio disk as a process of its own.
//!
//! Read in this order:
//!
//! ```text
//!   backend   every wake-up, and where it leads
//!   staging   who comes and goes: one VMM, and its session
//!   plain     a kick of any vhost-user front-end: served at once     ┐
//!   submit    an order of our VMM: answered, or held and then issued ┤
//!   held      what waits, and whether it may be issued               │
//!   chain     (of lockstep_staging) descriptors -> segments          │ both go
//!   request   segments -> what the guest asks for, checked           │ through
//!   disk      the file or device, one system call at a time          │ these
//!   change    a write, discard or write-zeroes, step by step         │
//!   complete  what an answer says                                    │
//!   sink      where an answer goes: guest memory, or the staging ring┘
//!   inflight  which orders are taken and not completed
//!   changes   what changed on a mirrored disk, for the VMM and for the day when a host comes back
//!   image     what a mirrored disk holds, to be compared with the other host's
//! ```
//!
//! In a protected VM this process never writes guest memory, and never changes a shared disk before the gate lets it.
#![forbid(unsafe_code)]

pub mod args;
pub mod backend;
pub mod change;
pub mod changes;
pub mod complete;
pub mod disk;
pub mod held;
pub mod image;
pub mod inflight;
pub mod limits;
pub mod offer;
pub mod payload;
pub mod plain;
pub mod request;
pub mod serve;
pub mod sink;
mod staging;
pub mod submit;
