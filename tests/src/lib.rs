//! What the stories under `tests/` and the xtask door are made of. Each module says which suite it belongs to.
#![forbid(unsafe_code)]

pub mod demo;
pub mod everyday;
pub mod faults;
pub mod fuzz;
pub mod kill_points;
pub mod lab;
pub mod mutants;
pub mod network;
pub mod nightly;
pub mod pair;
pub mod programs;
pub mod qemu;
pub mod redis;
pub mod seeds;
pub mod sim;
