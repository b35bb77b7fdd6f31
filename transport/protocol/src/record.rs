//! THE replicated record: one input and the position it enters at. It is device-neutral, so a backup needs
//! no device to replay it. The VMM makes records and applies them; nothing here knows the wire.

use bytes::Bytes;

use crate::ids::{DeviceId, GuestTime, Head, Position, QueueIndex};

/// One input and the position it enters at: the unit of the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record<B = Bytes> {
    /// The window in which the input enters.
    pub position: Position,
    /// The last record of its window, unless a delta opens that again.
    pub closes: bool,
    /// What enters.
    pub input: Input<B>,
}

/// What enters a VM in a window. `B` holds the bytes: a slice on the primary, shared bytes on the backup.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input<B = Bytes> {
    /// The VM is switched on. Enters at position 0 and nowhere else.
    PowerOn {
        /// The only randomness that the guest gets.
        seed: [u8; 32],
    },
    /// Nothing enters: the primary came to this position. Outputs point behind one (I4).
    Mark,
    /// The guest's clock moves.
    Tick {
        /// What the clock shows from now on.
        time: GuestTime,
    },
    /// A frame arrives; the VMM takes the next buffer of the receive queue for it.
    Frame {
        /// The network device.
        device: DeviceId,
        /// The frame with its virtio header.
        bytes: B,
    },
    /// A request on the disk is done.
    Completion {
        /// The disk.
        device: DeviceId,
        /// The queue the request came from.
        queue: QueueIndex,
        /// The chain that is done.
        head: Head,
        /// What goes to the device-writable part of the chain: data read, then the status byte.
        bytes: B,
    },
    /// The oldest chains in flight on a queue are done with length 0.
    Returned {
        /// The device.
        device: DeviceId,
        /// The queue.
        queue: QueueIndex,
        /// How many chains.
        count: u16,
    },
    /// Bytes typed at the console.
    Console {
        /// What was typed.
        bytes: B,
    },
    /// Pages of a delta: memory that the primary wrote and that could not be recomputed. They enter with its end. It may
    /// come to a window that is closed, and opens it again.
    DeltaPages {
        /// Pages, as the VMM encodes them.
        bytes: B,
    },
    /// Nothing enters: what the primary's machine comes to in this window, before later records enter. Equal machines come
    /// to equal digests.
    Digest {
        /// The digest, as the VMM makes it.
        bytes: B,
    },
    /// The delta that follows is for a backup that said it has diverged: it makes any machine equal, wherever it stands.
    Heal,
    /// The end of a delta: all of it enters now. The VM then stands where the primary stood, at the same position but
    /// somewhere past the exit that made it.
    DeltaEnd {
        /// The machine apart from its memory, as the VMM encodes it.
        bytes: B,
    },
}

impl<B> Input<B> {
    /// Whether it is a piece of a delta: these alone may come to a window that is closed (I2).
    pub fn is_delta(&self) -> bool {
        matches!(self, Self::DeltaPages { .. } | Self::DeltaEnd { .. } | Self::Heal)
    }
}

impl<B: AsRef<[u8]>> Input<B> {
    /// The bytes that enter; empty for an input without any.
    pub fn payload(&self) -> &[u8] {
        match self {
            Self::Frame { bytes, .. }
            | Self::Completion { bytes, .. }
            | Self::Console { bytes }
            | Self::DeltaPages { bytes }
            | Self::DeltaEnd { bytes }
            | Self::Digest { bytes } => bytes.as_ref(),
            Self::PowerOn { .. } | Self::Mark | Self::Heal | Self::Tick { .. } | Self::Returned { .. } => &[],
        }
    }

    /// The same input with its bytes borrowed.
    pub fn borrowed(&self) -> Input<&[u8]> {
        match self {
            Self::PowerOn { seed } => Input::PowerOn { seed: *seed },
            Self::Mark => Input::Mark,
            Self::Tick { time } => Input::Tick { time: *time },
            Self::Frame { device, bytes } => Input::Frame {
                device: *device,
                bytes: bytes.as_ref(),
            },
            Self::Completion {
                device,
                queue,
                head,
                bytes,
            } => Input::Completion {
                device: *device,
                queue: *queue,
                head: *head,
                bytes: bytes.as_ref(),
            },
            Self::Returned { device, queue, count } => Input::Returned {
                device: *device,
                queue: *queue,
                count: *count,
            },
            Self::Console { bytes } => Input::Console {
                bytes: bytes.as_ref(),
            },
            Self::DeltaPages { bytes } => Input::DeltaPages {
                bytes: bytes.as_ref(),
            },
            Self::DeltaEnd { bytes } => Input::DeltaEnd {
                bytes: bytes.as_ref(),
            },
            Self::Digest { bytes } => Input::Digest {
                bytes: bytes.as_ref(),
            },
            Self::Heal => Input::Heal,
        }
    }

    /// One word for logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::PowerOn { .. } => "power-on",
            Self::Mark => "mark",
            Self::Tick { .. } => "tick",
            Self::Frame { .. } => "frame",
            Self::Completion { .. } => "completion",
            Self::Returned { .. } => "returned",
            Self::Console { .. } => "console",
            Self::DeltaPages { .. } => "delta pages",
            Self::DeltaEnd { .. } => "delta end",
            Self::Digest { .. } => "digest",
            Self::Heal => "heal",
        }
    }
}
