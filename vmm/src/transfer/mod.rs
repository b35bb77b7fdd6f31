//! A VM moves to another host while it runs: the second way to make a backup, beside replay from power-on.
//!
//! Read in this order: [`pages`] (what memory looks like on the way), [`disk`] (what a mirrored disk does), [`source`] (the
//! host that runs the VM; `copying` is one copy), [`intake`] (the spare), [`progress`] (what people see of it). When a move is over the pair is like any other: a term
//! is claimed, and a log begins.

mod copying;
pub mod disk;
pub mod intake;
pub mod pages;
pub mod progress;
pub mod source;

/// What a piece of a copy is. 0 is invalid.
mod piece {
    /// Pages of memory.
    pub(super) const PAGES: u8 = 1;
    /// Where the log begins, 8 bytes, and the state of the machine: the last piece.
    pub(super) const MACHINE: u8 = 2;
    /// Nothing: the spare says when it has put everything in place so far.
    pub(super) const ROUND: u8 = 3;
    /// A mirrored disk begins: whether all of it comes.
    pub(super) const DISK: u8 = 4;
    /// Which blocks of it come next.
    pub(super) const ANNOUNCED: u8 = 5;
    /// Blocks of it.
    pub(super) const BLOCKS: u8 = 6;
    /// Its two images are equal when the machine has come: the name of the pairing, 16 bytes.
    pub(super) const PAIRING: u8 = 7;
}
