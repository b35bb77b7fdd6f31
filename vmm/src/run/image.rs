//! The files that a guest boots, read once at the start. The machine takes them from here; the hello compares them.

use crate::config;
use crate::machine::Guest;
use anyhow::Context;
use std::path::Path;
use std::sync::Arc;

/// What the guest boots.
pub(super) enum Image {
    /// The embedded micro guest.
    Micro,
    /// Stock Linux.
    Linux { kernel: Arc<[u8]>, initrd: Arc<[u8]> },
}

impl Image {
    /// Reads what the configuration names.
    pub(super) fn load(guest: &config::Guest) -> anyhow::Result<Self> {
        let read =
            |path: &Path| std::fs::read(path).with_context(|| format!("Cannot read {}", path.display()));
        Ok(match guest {
            config::Guest::Micro => Self::Micro,
            config::Guest::Linux { kernel, initrd } => Self::Linux {
                kernel: read(kernel)?.into(),
                initrd: initrd
                    .as_deref()
                    .map(read)
                    .transpose()?
                    .unwrap_or_default()
                    .into(),
            },
        })
    }

    /// As the machine builder takes it.
    pub(super) fn guest(&self) -> Guest {
        match self {
            Self::Micro => Guest::Micro(super::MICRO_GUEST),
            Self::Linux { kernel, initrd } => Guest::Linux {
                kernel: Arc::clone(kernel),
                initrd: Arc::clone(initrd),
            },
        }
    }

    /// Equal images have equal digests.
    pub(super) fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let (first, second) = match self {
            Self::Micro => (super::MICRO_GUEST, [].as_slice()),
            Self::Linux { kernel, initrd } => (&**kernel, &**initrd),
        };
        hasher
            .update(&(first.len() as u64).to_le_bytes())
            .update(first)
            .update(second);
        hasher.finalize()
    }
}
