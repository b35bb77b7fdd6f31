//! Where the records of a live machine go: to its backup, or nowhere where there is none. The recorder appends, the session
//! with the backup (or its absence) implements it.

use lockstep_protocol::divergence::Patient;
use lockstep_protocol::ids::{LogOffset, Position};
use lockstep_protocol::record::Input;

/// Where the records of a live machine go.
pub trait LogSink: Send {
    /// Appends what enters in the window at `position`, the last one closing it, and returns the log offset before the
    /// first of them. Waits while the log window is full.
    ///
    /// # Errors
    /// [`PeerLost`] when there is nobody to log for any more; nothing was appended then.
    fn append(&mut self, position: Position, inputs: &[Input<&[u8]>]) -> Result<LogOffset, PeerLost>;

    /// Lets what was appended be sent. Called when an output waits for it or the guest idles: input alone may wait for
    /// the next of these, so that a window costs the sender one wake-up instead of two.
    fn flush(&mut self) {}

    /// Whether the peer is lost; asked in every window.
    fn is_lost(&self) -> bool;

    /// Whether somebody executes the log: a guest that is stopped in the middle of a run then needs a delta.
    fn has_backup(&self) -> bool {
        true
    }

    /// False once the backup has said that it has diverged, until the delta that heals it is in the log: there is nothing to
    /// compare meanwhile, and what is written is not forgotten.
    fn has_equal_backup(&self) -> bool {
        self.has_backup()
    }

    /// Whether the backup has diverged and said all that is needed to heal it.
    fn wants_heal(&self) -> bool {
        false
    }

    /// That backup; given once.
    fn poll_heal(&mut self) -> Option<Patient> {
        None
    }

    /// Appends the delta that heals it, without waiting for room: nothing is acked before it is there.
    ///
    /// # Errors
    /// When the backup is lost.
    fn treat(&mut self, position: Position, delta: &[Input<&[u8]>]) -> Result<(), PeerLost> {
        self.append(position, delta).map(drop)
    }

    /// The log offset after the last record.
    fn end(&self) -> LogOffset;
}

/// There is nobody at the other end of the log any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The backup is lost")]
pub struct PeerLost;
