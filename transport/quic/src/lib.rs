//! The QUIC link of a Lockstep pair: who may speak, and over what kind of connection.
//!
//! Read in this order: [`identity`] (our certificate and key, the certificates that we accept), [`dates`] (when they are good), [`keys`] (how
//! they are made), [`pinning`] (the check at every handshake), [`config`] (the limits of a connection),
//! [`endpoint`] (sockets, connecting, accepting), `crowd` (who stands at the door), [`failure`] (what went wrong, for people),
//! `knocks` (who was sent away, in the log); then
//! [`link`] (one half of a pair, for the VMM), `session` (hello and streams), `driver` (the thread that moves bytes between
//! streams and machine), `streams` (which stream is which), [`state`] (a second connection, to copy a VM), [`clock`] (the pair's clock).
//!
//! This is the only crate below the arbiter and the VMM that knows tokio and quinn. It decides nothing about
//! the pair: it moves bytes between a peer that it has recognised and the state machines of `lockstep_protocol`.

#![forbid(unsafe_code)]

pub mod clock;
pub mod config;
mod crowd;
pub mod dates;
mod driver;
pub mod endpoint;
pub mod failure;
pub mod identity;
pub mod keys;
mod knocks;
pub mod link;
pub mod pinning;
mod session;
pub mod state;
mod streams;
mod tls;
