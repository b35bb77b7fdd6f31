//! The configuration file exactly as it is written. Only `validate.rs` reads these types. An unknown key is an error:
//! a misspelt one must not silently mean the default.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) vm: Vm,
    #[serde(default)]
    pub(super) pair: Pair,
    pub(super) arbiter: Spanned<Arbiter>,
    pub(super) node: Spanned<BTreeMap<Spanned<String>, Spanned<Node>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Vm {
    pub(super) name: Spanned<String>,
    pub(super) guest: Option<Spanned<Guest>>,
    pub(super) kernel: Option<Spanned<String>>,
    pub(super) initrd: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) console: Console,
    pub(super) vcpus: Option<Spanned<u8>>,
    pub(super) memory_mib: Option<Spanned<u32>>,
    pub(super) cmdline: Option<Spanned<String>>,
    pub(super) net: Option<Net>,
    pub(super) disk: Option<Disk>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Guest {
    Micro,
    Linux,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Console {
    #[default]
    Log,
    Stdio,
    Socket,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Net {
    pub(super) mac: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Disk {
    #[serde(default)]
    pub(super) mode: DiskMode,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum DiskMode {
    #[default]
    Shared,
    Mirror,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pair {
    pub(super) heartbeat_ms: Option<Spanned<u64>>,
    pub(super) timeout_ms: Option<Spanned<u64>>,
    pub(super) lease_ms: Option<Spanned<u64>>,
    pub(super) log_window_kib: Option<Spanned<u64>>,
    pub(super) stall_limit_ms: Option<Spanned<u64>>,
}

/// Flat although it is a choice: inside a tagged enum the parser forgets the line numbers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Arbiter {
    pub(super) kind: ArbiterKind,
    pub(super) dir: Option<Spanned<String>>,
    pub(super) address: Option<Spanned<String>>,
    pub(super) certificate: Option<Spanned<String>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ArbiterKind {
    File,
    Quic,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Node {
    pub(super) address: Spanned<String>,
    pub(super) listen: Option<Spanned<String>>,
    pub(super) certificate: Spanned<String>,
    pub(super) key: Spanned<String>,
    pub(super) tap: Option<Spanned<String>>,
    pub(super) disk: Option<Spanned<String>>,
    pub(super) run_dir: Spanned<String>,
    pub(super) net_socket: Option<Spanned<String>>,
    pub(super) net_staging: Option<Spanned<String>>,
    pub(super) blk_socket: Option<Spanned<String>>,
    pub(super) blk_staging: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) spare: bool,
}
