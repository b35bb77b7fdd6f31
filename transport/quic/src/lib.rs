//! The QUIC link of a Lockstep pair: who may speak, and over what kind of connection.
//!
//! Read in this order: [`identity`] (our certificate and key, the certificates that we accept), [`dates`] (when they are good), [`keys`] (how
//! they are made), [`pinning`] (the check at every handshake), [`config`] (the limits of a connection),
//! [`endpoint`] (sockets, connecting, accepting), [`failure`] (what went wrong, for people).
//!
//! This is the only crate below the arbiter and the VMM that knows tokio and quinn. It decides nothing about
//! the pair: it moves bytes between a peer that it has recognised and the state machines of `lockstep_protocol`.

#![forbid(unsafe_code)]

pub mod config;
pub mod dates;
pub mod endpoint;
pub mod failure;
pub mod identity;
pub mod keys;
pub mod pinning;
mod tls;
