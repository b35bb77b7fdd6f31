//! The micro guest: a key-value server that speaks RESP, with its own TCP stack, disk log and drivers, and no
//! operating system.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod abi;
