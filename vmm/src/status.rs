//! What a running node says about itself: the one JSON object that the control socket answers with.
//!
//! The VM's threads fill it in, `lockstep status` prints it, the demo and the bench read it. Pure data: nothing here
//! asks a clock or a socket. A key is never renamed or given another meaning; new keys may come.

use serde::{Deserialize, Serialize};

/// One node, as it sees itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Release of the `lockstep` that answers.
    pub release: String,
    /// Name of the VM.
    pub vm: String,
    /// Name of this node.
    pub node: String,
    /// What it is doing.
    pub role: Role,
    /// Which term it believes in.
    pub term: u64,
    /// How many synchronous exits the VM has made here.
    pub position: u64,
    /// Log offset after the last record that this node knows.
    pub log_end: u64,
    /// Log offset before which the backup holds every record.
    pub acked: u64,
    /// Log offset before which the backup has executed every record.
    pub executed: u64,
    /// How far the backup's execution is behind.
    pub lag: Lag,
    /// Outputs that wait for an ack.
    pub held_outputs: u64,
    /// Outputs that have left since this process started.
    pub released_outputs: u64,
    /// Bytes of log made or received.
    pub log_bytes: u64,
    /// Bytes of input among them: what came from the outside and the disk.
    pub input_bytes: u64,
    /// How much longer outputs may leave without another word from the backup; absent where no lease counts.
    pub lease_ms_left: Option<u64>,
    /// The peer, if one is connected or expected.
    pub peer: Option<Peer>,
    /// The other hosts of the configuration: each may become the peer.
    #[serde(default)]
    pub spares: Vec<Spare>,
    /// The device processes.
    pub devices: Vec<Device>,
    /// The longest that the guest ran without opening a window for inputs, since this host talks to the outside.
    #[serde(default)]
    pub longest_run_us: u64,
    /// The longest that an input may have waited for a window; it was not lost.
    #[serde(default)]
    pub longest_wait_us: u64,
    /// Deltas made or put in place: the guest was stopped in the middle of a run, so that its inputs could enter.
    #[serde(default)]
    pub deltas: u64,
    /// Their bytes in the log.
    #[serde(default)]
    pub delta_bytes: u64,
    /// How often the backup's machine was found to differ from the primary's.
    #[serde(default)]
    pub divergences: u64,
    /// The last such finding: where and what; absent until there was one.
    #[serde(default)]
    pub divergence: Option<String>,
    /// How often it was made equal again by a delta.
    #[serde(default)]
    pub healed: u64,
    /// How long the guest has been running by its own clock.
    pub guest_time_ns: u64,
    /// How long this process runs.
    pub uptime_ms: u64,
    /// What the last takeover took; absent until there was one.
    pub takeover: Option<Takeover>,
    /// The last copy of the VM to a spare, or from another host; absent until there was one.
    #[serde(default)]
    pub copy: Option<Copy>,
    /// What happened here, oldest first; bounded by [`EVENTS_MAX`].
    pub events: Vec<Event>,
}

/// What a node is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Not yet running the guest, or running it before its first peer came.
    Starting,
    /// Talks to the outside, and a backup protects it.
    Primary,
    /// Executes the primary's inputs and says nothing.
    Backup,
    /// Talks to the outside unprotected: it holds the term alone.
    Alone,
    /// A spare: waits for a VM to be copied to it, or takes it in.
    Standby,
    /// Lost its peer and is claiming the next term.
    TakingOver,
    /// Lost a claim, or stopped; nothing leaves it any more.
    Halted,
}

/// How far the backup's execution is behind the primary's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lag {
    /// In records.
    pub records: u64,
    /// In positions.
    pub positions: u64,
}

/// The other host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// Its name.
    pub node: String,
    /// Where it is.
    pub address: String,
    /// Whether the connection stands.
    pub connected: bool,
    /// Why it was lost, once it is.
    #[serde(default)]
    pub lost: Option<String>,
    /// Smoothed round trip of the QUIC connection.
    pub rtt_us: Option<u64>,
}

/// A host that is not the peer now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spare {
    /// Its name.
    pub node: String,
    /// Where it is.
    pub address: String,
}

/// One device process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Device {
    /// `net` or `blk`.
    pub kind: String,
    /// Whether it still answers.
    pub alive: bool,
    /// Its process id, where this node started it.
    pub pid: Option<u32>,
}

/// What a takeover took. All times are this host's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Takeover {
    /// CLOCK_REALTIME at which the guest was live here, in ns.
    pub at_unix_ns: u64,
    /// From the last word of the peer to the suspicion.
    pub detect_ms: f64,
    /// From the suspicion until the log was replayed to its end.
    pub replay_ms: f64,
    /// From the first try of the claim to its grant.
    pub claim_ms: f64,
    /// From the grant until the guest was live.
    pub promote_ms: f64,
}

/// A copy of a running VM to another host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Copy {
    /// Rounds over the memory so far.
    pub rounds: u32,
    /// Pages that went over, those of all rounds.
    pub pages: u64,
    /// In so many bytes.
    pub bytes: u64,
    /// Pages of this round that are left; 0 where only the other host knows.
    pub pages_left: u64,
    /// Bytes in a second, on the average.
    pub bytes_per_s: u64,
    /// An estimate of how long this round still takes; absent when the copy is over.
    pub seconds_left: Option<f64>,
    /// How long it has taken.
    pub seconds: f64,
    /// How long the guest stood still for it; absent until it is over.
    pub stop_ms: Option<f64>,
    /// The mirrored disk that goes along, if the VM has one.
    #[serde(default)]
    pub disk: Option<DiskCopy>,
}

/// A mirrored disk that is copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCopy {
    /// All of it, and not only what changed since the other host left.
    pub whole: bool,
    /// Bytes of it that went over, those of all rounds; zeros count.
    pub bytes: u64,
    /// Bytes of this round that are left at most; 0 where only the other host knows.
    pub bytes_left: u64,
}

/// Something that happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    /// CLOCK_REALTIME, in ns.
    pub at_unix_ns: u64,
    /// CLOCK_BOOTTIME, in ns: comparable between processes of one host even when the wall clock is set.
    pub at_boot_ns: u64,
    /// What.
    pub what: What,
}

/// What can happen to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The process began.
    Started,
    /// The connection to the peer stands and both said hello.
    PeerConnected,
    /// The peer counts as lost.
    PeerLost,
    /// The log is executed to its end.
    Replayed,
    /// The arbiter was asked for the next term.
    Claiming,
    /// The arbiter granted the term.
    Claimed,
    /// The guest talks to the outside from here.
    Live,
    /// The backup's machine was found to differ from the primary's.
    Diverged,
    /// The VM began to be copied to a spare.
    CopyBegan,
    /// A backup that the VM was copied to protects it.
    Protected,
    /// This node stopped for good.
    Halted,
}

/// How many events a node keeps; the oldest go first.
pub const EVENTS_MAX: usize = 64;
