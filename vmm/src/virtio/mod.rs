//! What the guest sees of its devices: register windows ([`mmio`]) and virtqueues ([`ring`]). The device processes
//! behind them are reached through [`frontend`].

pub mod frontend;
pub mod mmio;
pub mod ring;
