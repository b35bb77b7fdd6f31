//! vhost-net-ft: a network device over a tap, as a process of its own, for ordinary and for protected VMs.
//!
//! The way of a frame in: `tap` → `rx` → the staging ring (protected; the VMM logs and injects it) or the guest's
//! buffers through `queue` (plain). The way of a frame out: an order (protected) or a kick (plain) → `tx`, which holds it
//! until the gate lets it leave (protected) or not at all (plain) → `tap`.
//!
//! Read in this order: `wakes` (why we wake), `device` (what each wake-up does), `rx` and `tx` (frames), `session` (one
//! protected VM), `sink` and `queue` (who completes), then the edges: `backend`, `serve`, `front_door`,
//! `tap`, `frame`, `args`, `sentence`.
//!
//! A frame of a protected VM leaves only through `tx::HeldFrames::release`, and no file here writes a protected guest's
//! memory. `unsafe` is allowed in `tap` alone.
#![deny(unsafe_code)]

pub mod args;
pub mod backend;
pub mod device;
#[cfg(test)]
mod fake;
pub mod frame;
pub mod front_door;
pub mod limits;
pub mod queue;
pub mod rx;
pub mod sentence;
pub mod serve;
pub mod session;
pub mod sink;
#[allow(unsafe_code, reason = "three ioctls that no safe wrapper offers")]
pub mod tap;
pub mod tx;
pub mod wakes;
