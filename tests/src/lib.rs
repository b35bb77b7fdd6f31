//! What the stories under `tests/` and the xtask door are made of. Each module says which suite it belongs to.
#![forbid(unsafe_code)]

pub mod qemu;
