//! Where completions go: into a plain front-end's used ring, or through staging to the VMM of a protected VM.
//!
//! Owned by `device.rs`. It only says which of the two holds; `queue.rs` writes the one, `session.rs` stages for the
//! other, and there is no third way to complete anything.

use crate::session::Session;

/// Who applies what this device does.
#[derive(Debug)]
pub enum Sink {
    /// Ourselves, straight into the rings of whatever front-end is connected.
    Plain,
    /// A VMM that applies it in a window.
    Protected(Box<Session>),
    /// Nobody: the VMM of a protected VM is gone, and its rings must not be touched until a front-end sets up new ones.
    Over,
}

impl Sink {
    /// The session of a protected VM.
    pub fn session(&mut self) -> Option<&mut Session> {
        match self {
            Self::Protected(session) => Some(session),
            Self::Plain | Self::Over => None,
        }
    }
}
