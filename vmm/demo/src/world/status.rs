//! What the demo reads of a node's status: the part of `lockstep status --json` that it shows and judges by. It asks
//! the control socket itself, as any program may.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// One node's answer.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Status {
    pub(crate) role: String,
    pub(crate) term: u64,
    #[serde(default)]
    pub(crate) log_end: u64,
    #[serde(default)]
    pub(crate) log_bytes: u64,
    #[serde(default)]
    pub(crate) input_bytes: u64,
    #[serde(default)]
    pub(crate) peer: Option<Peer>,
    #[serde(default)]
    pub(crate) takeover: Option<Takeover>,
    #[serde(default)]
    pub(crate) copy: Option<Copy>,
    #[serde(default)]
    pub(crate) devices: Vec<Device>,
    #[serde(default)]
    pub(crate) lease_ms_left: Option<u64>,
    #[serde(default)]
    pub(crate) events: Vec<Event>,
}

/// One device process.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Device {
    pub(crate) kind: String,
    pub(crate) pid: Option<i32>,
}

/// The other host, as that node sees it.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Peer {
    pub(crate) connected: bool,
    pub(crate) rtt_us: Option<u64>,
}

/// What the takeover took.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Takeover {
    pub(crate) replay_ms: f64,
    pub(crate) claim_ms: f64,
    pub(crate) promote_ms: f64,
}

/// What a copy to a spare took.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Copy {
    pub(crate) rounds: u32,
    pub(crate) bytes: u64,
    pub(crate) stop_ms: Option<f64>,
    #[serde(default)]
    pub(crate) disk: Option<DiskCopy>,
}

/// The mirrored disk of a copy.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct DiskCopy {
    pub(crate) whole: bool,
    pub(crate) bytes: u64,
}

/// Something that happened.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Event {
    pub(crate) at_boot_ns: u64,
    pub(crate) what: String,
}

impl Status {
    /// Whether the node has come to `role`, with its backup if it is to have one.
    pub(crate) fn is_ready(&self, role: &str) -> bool {
        self.role == role && (role != "primary" || self.peer.as_ref().is_some_and(|peer| peer.connected))
    }

    /// Whether it talks to the outside.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.role.as_str(), "primary" | "alone")
    }

    /// When `what` first happened at or after `since`, both in ns of CLOCK_BOOTTIME.
    pub(crate) fn first(&self, what: &str, since: u64) -> Option<u64> {
        self.events
            .iter()
            .filter(|event| event.what == what)
            .map(|event| event.at_boot_ns)
            .find(|at| *at >= since)
    }
}

/// Asks once; nothing if the node does not answer in time.
pub(crate) async fn ask(socket: &Path) -> Option<Status> {
    let answer = tokio::time::timeout(ANSWER_TIME, async {
        let mut stream = UnixStream::connect(socket).await.ok()?;
        stream.write_all(b"status\n").await.ok()?;
        let mut text = Vec::new();
        stream.take(ANSWER_MAX).read_to_end(&mut text).await.ok()?;
        serde_json::from_slice(&text).ok()
    });
    answer.await.ok().flatten()
}

const ANSWER_TIME: Duration = Duration::from_millis(500);
const ANSWER_MAX: u64 = 1 << 20;
