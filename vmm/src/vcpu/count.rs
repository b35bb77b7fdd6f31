//! How many vCPUs a VM has. The configuration makes it, the machine builder asks it; what it decides is whether a VM is
//! recomputed by its backup or copied to it epoch by epoch.

use serde::{Deserialize, Serialize};

/// A number of vCPUs, from 1 to [`VcpuCount::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct VcpuCount(u8);

impl VcpuCount {
    /// A VM that is recomputed.
    pub const ONE: Self = Self(1);
    /// More would stand still longer at the end of an epoch than they run.
    pub const MAX: u8 = 8;

    /// So many; `None` for a number that no VM has.
    #[must_use]
    pub const fn new(count: u8) -> Option<Self> {
        if count >= 1 && count <= Self::MAX {
            Some(Self(count))
        } else {
            None
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Whether the VM runs in epochs: with several vCPUs it cannot be recomputed.
    #[must_use]
    pub const fn is_several(self) -> bool {
        self.0 > 1
    }
}

impl TryFrom<u8> for VcpuCount {
    type Error = NoSuchCount;

    fn try_from(count: u8) -> Result<Self, NoSuchCount> {
        Self::new(count).ok_or(NoSuchCount { count })
    }
}

impl From<VcpuCount> for u8 {
    fn from(count: VcpuCount) -> Self {
        count.0
    }
}

/// No VM has so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("A VM has 1 to {max} vCPUs, not {count}", max = VcpuCount::MAX)]
pub struct NoSuchCount {
    count: u8,
}
