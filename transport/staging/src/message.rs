//! What the two ends say: at set-up over the socket, afterwards as ring entries. The only file that knows the bytes.
//!
//! Set-up is one request and one answer; a refusal carries its reason. Magic, version, verdict and reason lie at the
//! same place in every version, so that an old end can say why it does not talk to a new one. Tag and kind 0 are
//! invalid everywhere.

use std::fmt;

use lockstep_protocol::ids::{Head, LogOffset, QueueIndex};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::limits::{CONFIG_BYTES_MAX, REASON_BYTES_MAX, RELEASE_BYTES_MAX};
use crate::memory::RingSizes;

/// Changes whenever the memory layout or a message changes.
pub const VERSION: u32 = 3;
/// "LKSTAGE1" as bytes.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"LKSTAGE1");

/// Which device a process drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceKind {
    /// virtio-net over a tap.
    Net = 1,
    /// virtio-blk over a file or block device.
    Blk = 2,
}

impl DeviceKind {
    pub(crate) fn from_word(value: u32) -> Option<Self> {
        match value {
            1 => Some(Self::Net),
            2 => Some(Self::Blk),
            _ => None,
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Net => "network device",
            Self::Blk => "disk",
        })
    }
}

/// What the VMM says about itself and wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmmFacts {
    /// The kind of device it expects behind the socket.
    pub kind: DeviceKind,
    /// Whether it wants [`DeviceFacts::image`], which takes as long as reading a disk image takes.
    pub compares_images: bool,
    /// Its release, for logs only.
    pub release: String,
}

/// What a device process says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// What it drives.
    pub kind: DeviceKind,
    /// The virtio feature bits that it offers in protected mode.
    pub features: u64,
    /// The device's virtio configuration space.
    pub config: Vec<u8>,
    /// Each host has a disk image of its own, and a backup's process mirrors what the guest changes.
    pub is_mirrored: bool,
    /// What that image holds, in few bytes; only when the VMM wants it.
    pub image: Option<ImageDigest>,
    /// Its release, for logs only.
    pub release: String,
}

/// A digest of everything that a disk image holds. Equal images have equal ones, wherever their holes are.
pub type ImageDigest = [u8; 32];

/// The VMM popped a head from a queue that carries outputs or requests; the device process reads its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// The queue that the head was popped from.
    pub queue: QueueIndex,
    /// The head of the descriptor chain.
    pub head: Head,
    /// Outputs made of this chain may leave when every record before this offset is acked.
    pub needs: LogOffset,
}

/// What a device process staged on the completions ring; the bytes, if any, come beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staged {
    /// One request is done; the bytes go into the writable part of its chain.
    Completion {
        /// The queue of the request.
        queue: QueueIndex,
        /// The head of its chain.
        head: Head,
    },
    /// The oldest `count` heads in flight of this queue are done, with length 0.
    Returned {
        /// The queue.
        queue: QueueIndex,
        /// How many heads.
        count: u16,
    },
}

/// Tags of ring entries.
pub(crate) mod tag {
    pub(crate) const COMPLETION: u32 = 1;
    pub(crate) const RETURNED: u32 = 2;
    pub(crate) const FRAME: u32 = 3;
    pub(crate) const ORDER: u32 = 4;
}

/// Before the bytes of a completion; all of a `Returned` (then `value` is the count).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct StagedHeader {
    pub(crate) queue: u16,
    pub(crate) value: u16,
    pub(crate) reserved: u32,
}

/// An order as it lies in its ring.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct OrderBytes {
    needs: u64,
    queue: u16,
    head: u16,
    reserved: u32,
}

impl From<Order> for OrderBytes {
    fn from(order: Order) -> Self {
        let Order { queue, head, needs } = order;
        Self {
            needs: needs.get(),
            queue: queue.get(),
            head: head.get(),
            reserved: 0,
        }
    }
}

impl From<OrderBytes> for Order {
    fn from(bytes: OrderBytes) -> Self {
        Self {
            queue: QueueIndex::new(bytes.queue),
            head: Head::new(bytes.head),
            needs: LogOffset::new(bytes.needs),
        }
    }
}

/// The VMM's first and only message, with three descriptors: memfd, device's doorbell, VMM's doorbell.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Request {
    pub(crate) magic: u64,
    pub(crate) version: u32,
    pub(crate) kind: u32,
    completions: u64,
    frames: u64,
    orders: u64,
    compares_images: u64,
    release: [u8; RELEASE_BYTES_MAX],
}

impl Request {
    pub(crate) fn new(facts: &VmmFacts, sizes: RingSizes) -> Self {
        let RingSizes {
            completions,
            frames,
            orders,
        } = sizes;
        Self {
            magic: MAGIC,
            version: VERSION,
            kind: facts.kind as u32,
            completions,
            frames,
            orders,
            compares_images: facts.compares_images.into(),
            release: to_text(&facts.release),
        }
    }

    pub(crate) fn sizes(&self) -> RingSizes {
        RingSizes {
            completions: self.completions,
            frames: self.frames,
            orders: self.orders,
        }
    }

    /// What the VMM says; `None` when it makes no sense.
    pub(crate) fn facts(&self) -> Option<VmmFacts> {
        Some(VmmFacts {
            kind: DeviceKind::from_word(self.kind)?,
            compares_images: self.compares_images != 0,
            release: from_text(&self.release),
        })
    }
}

/// Bits of [`Answer::flags`].
const MIRRORED: u64 = 1;
const HAS_IMAGE: u64 = 2;

pub(crate) const VERDICT_ACCEPTED: u32 = 1;
pub(crate) const VERDICT_REFUSED: u32 = 2;

/// The device's answer. The first four fields lie where they lie in every version.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Answer {
    pub(crate) magic: u64,
    pub(crate) version: u32,
    pub(crate) verdict: u32,
    reason: [u8; REASON_BYTES_MAX],
    pub(crate) kind: u32,
    config_length: u32,
    features: u64,
    flags: u64,
    image: ImageDigest,
    release: [u8; RELEASE_BYTES_MAX],
    config: [u8; CONFIG_BYTES_MAX],
}

impl Answer {
    pub(crate) fn accepted(facts: &DeviceFacts) -> Self {
        assert!(
            facts.config.len() <= CONFIG_BYTES_MAX,
            "a virtio configuration space is far smaller"
        );
        let mut config = [0; CONFIG_BYTES_MAX];
        config[..facts.config.len()].copy_from_slice(&facts.config);
        Self {
            magic: MAGIC,
            version: VERSION,
            verdict: VERDICT_ACCEPTED,
            reason: [0; REASON_BYTES_MAX],
            kind: facts.kind as u32,
            config_length: u32::try_from(facts.config.len()).expect("checked above"),
            features: facts.features,
            flags: u64::from(facts.is_mirrored) * MIRRORED + u64::from(facts.image.is_some()) * HAS_IMAGE,
            image: facts.image.unwrap_or_default(),
            release: to_text(&facts.release),
            config,
        }
    }

    pub(crate) fn refused(reason: &str) -> Self {
        Self {
            magic: MAGIC,
            version: VERSION,
            verdict: VERDICT_REFUSED,
            reason: to_text(reason),
            kind: 0,
            config_length: 0,
            features: 0,
            flags: 0,
            image: ImageDigest::default(),
            release: to_text(""),
            config: [0; CONFIG_BYTES_MAX],
        }
    }

    pub(crate) fn reason(&self) -> String {
        from_text(&self.reason)
    }

    /// The facts of an accepting answer; `None` when they make no sense.
    pub(crate) fn facts(&self) -> Option<DeviceFacts> {
        let config = self.config.get(..self.config_length as usize)?.to_vec();
        let kind = DeviceKind::from_word(self.kind)?;
        Some(DeviceFacts {
            kind,
            features: self.features,
            config,
            is_mirrored: self.flags & MIRRORED != 0,
            image: (self.flags & HAS_IMAGE != 0).then_some(self.image),
            release: from_text(&self.release),
        })
    }
}

/// Text in a fixed field, cut at a character and filled with zeros.
fn to_text<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    let length = text.floor_char_boundary(N);
    field[..length].copy_from_slice(&text.as_bytes()[..length]);
    field
}

fn from_text(field: &[u8]) -> String {
    let length = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..length])
        .chars()
        .filter(|c| !c.is_control())
        .collect()
}
