//! What an exit tells whoever serves its window. The machine fills it in while it serves the exit; nothing here acts.

use lockstep_protocol::ids::{DeviceId, Head, QueueIndex};
use std::time::Duration;

/// What the guest did in the exit that opened the window.
#[derive(Debug, Default)]
pub struct Exit {
    /// Chains it made available by a kick, to be ordered from the device process.
    pub kick: Option<Kick>,
    /// A device whose driver became ready.
    pub ready: Option<DeviceId>,
    /// A device that its driver reset.
    pub reset: Option<DeviceId>,
    /// The guest restarted: all its devices are reset.
    pub restarted: bool,
    /// It idles, at most so long.
    pub idle: Option<IdleLimit>,
    /// It is over.
    pub end: Option<End>,
}

/// A kick and what it made available.
#[derive(Debug)]
pub struct Kick {
    /// Whose queue.
    pub device: DeviceId,
    /// Which queue.
    pub queue: QueueIndex,
    /// The new chains, oldest first.
    pub heads: Vec<Head>,
}

/// How long an idling guest wants to wait for an input at most; `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleLimit(pub Option<Duration>);

/// How a VM ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
