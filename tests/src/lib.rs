//! What the stories under `tests/` and the xtask door are made of. Each module says which suite it belongs to.

pub mod qemu;
