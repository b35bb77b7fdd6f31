//! The vocabulary of a Lockstep pair, and the machines that keep it: no sockets, no clocks, no threads, no
//! hash order. `PROTOCOL.md` beside this crate has the glossary, the messages and the numbered invariants.
//!
//! Read in this order: `ids`, `time`, `limits` (words and bounds), `record` (what is replicated),
//! `outbox` (the output rule).
#![forbid(unsafe_code)]

pub mod ids;
pub mod limits;
pub mod outbox;
pub mod record;
pub mod time;

pub use ids::{
    DeviceId, GuestTime, Head, Holder, Incarnation, LogOffset, NodeName, Position, QueueIndex, Term,
};
pub use outbox::{Full, Gate, Outbox, OutboxLimit};
pub use record::{Input, Record};
pub use time::{Duration, Instant};
