//! What hostile bytes are fed to, one function a target: everything that a peer, a guest, a device process, the arbiter's
//! side or a file can say to us.
//!
//! `tests/fuzz` drives them with libFuzzer; `tests/tests/fuzz.rs` replays the corpora in every test run. A target panics
//! when something is wrong, and only then.

mod chains;
mod files;
mod rings;
mod staging;
mod states;
pub mod suite;
mod words;

use std::path::PathBuf;

/// One target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// What its corpus and its program are called.
    pub name: &'static str,
    /// What is done with the bytes.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "peer_log",
        run: words::peer_log,
    },
    Target {
        name: "peer_messages",
        run: words::peer_messages,
    },
    Target {
        name: "arbiter_messages",
        run: words::arbiter_messages,
    },
    Target {
        name: "term_file",
        run: files::term_file,
    },
    Target {
        name: "config_file",
        run: files::config_file,
    },
    Target {
        name: "net_chain",
        run: chains::net_chain,
    },
    Target {
        name: "blk_chain",
        run: chains::blk_chain,
    },
    Target {
        name: "virtio_mmio",
        run: chains::virtio_mmio,
    },
    Target {
        name: "staging_setup",
        run: staging::setup,
    },
    Target {
        name: "staging_rings",
        run: rings::staging,
    },
    Target {
        name: "machine_state",
        run: states::machine,
    },
    Target {
        name: "board_state",
        run: states::board,
    },
    Target {
        name: "device_state",
        run: states::device,
    },
    Target {
        name: "snapshot_file",
        run: states::snapshot,
    },
    Target {
        name: "state_pieces",
        run: states::pieces,
    },
];

/// Feeds bytes to the target of that name.
///
/// # Panics
/// When there is none, and when something is wrong with what was fed.
pub fn feed(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a program is named like its target").run)(bytes);
}

/// Where the corpora lie, a folder for each target.
#[must_use]
pub fn corpora() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}
