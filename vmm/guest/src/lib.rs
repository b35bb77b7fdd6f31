//! The micro guest: a key-value server that speaks RESP, with its own TCP stack, disk log and drivers, and no operating
//! system under it. The image (`main.rs`) starts it; the host's tests use the same code.
//!
//! Read in this order: `server` (one round of the main loop), `conn` (one client), `resp` and `command` (what it says
//! and what is done), `db` and `store` (the keys), `log` (how they survive), `stack` (TCP), `virtio` (the devices).
//! Nothing here reads a clock, a counter or a random source of the processor: time and seed come from the VMM.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod abi;
pub mod arguments;
pub mod budget;
pub mod cmdline;
pub mod command;
mod commands;
pub mod conn;
pub mod db;
pub mod disk;
mod glob;
mod inline;
pub mod limits;
pub mod log;
pub mod prng;
pub mod reply;
pub mod resp;
pub mod server;
pub mod stack;
pub mod store;
pub mod units;
pub mod virtio;
