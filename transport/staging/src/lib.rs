//! Staging: how a device process and its VMM on one host hand each other bytes.
//!
//! The VMM end makes one sealed memfd and two doorbells (eventfds) and hands them over a Unix seqpacket socket on
//! which the device end listens. After that everything moves through shared memory:
//!
//! ```text
//!   device end                                   VMM end
//!   stage_completion  ──── ring completions ───▶ pop_completion
//!   stage_returned
//!   stage_frame       ──── ring frames ────────▶ pop_frame
//!   pop_order         ◀─── ring orders ───────── push_order
//!   gate, mode        ◀─── gate ──────────────── GateWriter (acked, lease, mode)
//!   publish_waiting   ──── waiting_for, held ──▶ GateWriter::snapshot
//! ```
//!
//! Neither end trusts the other: every index, length and kind is checked once, after it was copied out, and a lie is
//! a [`Fault`], never a panic and never growth. Rings have a fixed size; full means push back. A doorbell is rung only
//! when the other side said that it sleeps.
//!
//! Read in this order: [`message`] (what is said), `ring` (how bytes move), [`gate`] (when outputs may leave),
//! `memory` (where all this lies), then [`vmm_end`] (with `entry` and `deferral`), [`listener`] (with [`place`]) and [`device_end`]. [`chain`] is how
//! a device process reads what an order names, [`mirrored`] what a disk's says on a backup, [`changes`] what it has
//! changed.
#![forbid(unsafe_code)]

pub mod chain;
pub mod changes;
mod deferral;
pub mod device_end;
pub mod doorbell;
mod entry;
pub mod gate;
pub mod limits;
pub mod listener;
mod memory;
pub mod message;
pub mod mirrored;
pub mod place;
mod ring;
mod socket;
pub mod vmm_end;

pub use changes::{ChangesReader, PairingId};
pub use device_end::{DeviceEnd, StageError};
pub use doorbell::Doorbell;
pub use gate::{GateSnapshot, GateWriter, Mode, boottime};
pub use listener::{AcceptError, DeviceListener};
pub use memory::MemoryError;
pub use message::{DeviceFacts, DeviceKind, ImageDigest, Order, Staged, VmmFacts};
pub use mirrored::Mirrored;
pub use place::BindError;
pub use ring::Fault;
pub use vmm_end::{ConnectError, PushError, VmmEnd};
