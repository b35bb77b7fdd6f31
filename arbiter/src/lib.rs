//! The arbiter: a durable test-and-set that makes two primaries of one VM impossible.
//!
//! Read in this order: [`register`] (the one rule), [`store`] (where terms are kept: [`store::file`] on a disk
//! that several hosts share), [`message`] (question and answer of the QUIC service), [`server`] (the service),
//! [`client`] (what the VMM uses; the one maker of a grant).
//!
//! It knows nothing about logs, leases or guests: it hands terms out, each once.

#![forbid(unsafe_code)]

pub mod client;
pub mod config;
pub mod message;
pub mod register;
pub mod server;
pub mod store;
