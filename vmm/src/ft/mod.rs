//! What makes the machine fault-tolerant. Inputs are gathered (`batch`) out of the device processes ([`port`]),
//! recorded ([`record`]) or replayed ([`replay`]), and enter by one function ([`inject`]). What cannot be recomputed goes
//! over as a [`delta`].

mod batch;
pub mod clock;
pub mod delta;
pub mod die;
pub mod digest;
pub mod flip;
mod gates;
pub mod inject;
pub mod lateness;
pub mod mirror;
pub mod pace;
pub mod pair;
pub mod port;
pub mod record;
pub mod replay;
pub mod takeover;
mod unanswered;
pub mod wait;
pub mod watch;
