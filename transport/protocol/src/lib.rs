//! The vocabulary of a Lockstep pair, and the machines that keep it: no sockets, no clocks, no threads, no
//! hash order. `PROTOCOL.md` beside this crate has the glossary, the messages and the numbered invariants.
//!
//! Read in this order: `ids`, `time`, `limits` (words and bounds), `record` (what is replicated), `message`
//! (what peers say), `session` (what both roles share), `primary`, `window` (what enters a live VM), `backup`,
//! `replay` (what enters a backup's), `divergence` (a backup that is none), `takeover`, `outbox` (the output rule). `codec`
//! alone knows bytes, `log` keeps the accounts of the log window.
#![forbid(unsafe_code)]

pub mod backup;
pub mod codec;
pub mod divergence;
pub mod ids;
pub mod limits;
pub mod log;
pub mod message;
pub mod outbox;
pub mod primary;
pub mod record;
pub mod replay;
pub mod session;
pub mod takeover;
pub mod time;
pub mod window;

pub use backup::Backup;
pub use codec::{LogFault, MessageDecoder, MessageFault, RecordDecoder, RecordEncoder, encode_message};
pub use divergence::{DivergenceFault, Patient};
pub use ids::{
    DeviceId, GuestTime, Head, Holder, Incarnation, LogOffset, NodeName, Position, QueueIndex, Term,
};
pub use log::WindowLimit;
pub use message::{
    Ack, Census, Digest, Diverged, Foreign, Heartbeat, Hello, Image, Message, Refusal, Role, Sentence,
};
pub use outbox::{Full, Gate, Outbox, OutboxLimit};
pub use primary::{AckFault, HeartbeatFault, Primary};
pub use record::{Input, Record};
pub use replay::{Admitted, Follower, Misplaced};
pub use session::{BadTiming, NewerTerm, Parting, PeerLost, Timing};
pub use takeover::{Claiming, Deed, Takeover, Verdict, VerdictFault};
pub use time::{Duration, Instant};
