//! What an exit tells whoever serves its window. The machine fills it in while it serves the exit, or all exits of an
//! epoch; nothing here acts.

use crate::state::bounds;
use crate::virtio::ring::QUEUE_SIZE_MAX;
use lockstep_protocol::ids::{DeviceId, Head, QueueIndex};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// As many queues as there are device windows, with room for cards of many queues.
const KICKS_MAX: usize = 32;
/// A queue has no more chains than entries.
const HEADS_MAX: usize = QUEUE_SIZE_MAX as usize;

/// What the guest did in the exit that opened the window: one thing, or in an epoch many.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Exit {
    /// Chains it made available by kicks, to be ordered from the device processes.
    #[serde(deserialize_with = "bounds::no_longer::<KICKS_MAX, _, _, _>")]
    pub kicks: Vec<Kick>,
    /// Devices whose driver became ready.
    #[serde(deserialize_with = "bounds::no_longer::<KICKS_MAX, _, _, _>")]
    pub ready: Vec<DeviceId>,
    /// Devices that their driver reset, before one became ready again.
    #[serde(deserialize_with = "bounds::no_longer::<KICKS_MAX, _, _, _>")]
    pub reset: Vec<DeviceId>,
    /// The guest restarted: all its devices are reset.
    pub restarted: bool,
    /// It idles, at most so long.
    pub idle: Option<IdleLimit>,
    /// It is over.
    pub end: Option<End>,
}

impl Exit {
    /// Whether the guest called for an output, or ended: an exit like this is marked in the log.
    #[must_use]
    pub fn calls(&self) -> bool {
        !self.kicks.is_empty() || self.end.is_some()
    }
}

/// A kick and what it made available.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kick {
    /// Whose queue.
    pub device: DeviceId,
    /// Which queue.
    pub queue: QueueIndex,
    /// The new chains, oldest first.
    #[serde(deserialize_with = "bounds::no_longer::<HEADS_MAX, _, _, _>")]
    pub heads: Vec<Head>,
}

/// How long an idling guest wants to wait for an input at most; `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdleLimit(pub Option<Duration>);

/// How a VM ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// The guest switched itself off.
    PowerOff,
    /// The guest reported its own panic.
    Panic,
    /// The guest halted with interrupts off: nothing will ever wake it.
    Halt,
    /// A triple fault, or a halt of the micro guest, which nothing could end.
    Fault {
        /// Where the guest was.
        rip: u64,
    },
}
