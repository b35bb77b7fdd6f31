//! Death at a chosen record, for the stories that kill a primary at every point of its log.
//!
//! `lockstep run --die-at-record N` wraps the log of a primary in it. It is a power cut and nothing else: SIGKILL to the
//! own process group, device processes included. For an even N the record is acked first, so that whatever it lets go
//! may leave; for an odd N death comes at once, with the record perhaps on its way.

use super::pair::PairSink;
use super::record::{LogSink, PeerLost};
use lockstep_protocol::ids::{LogOffset, Position};
use lockstep_protocol::record::Input;
use rustix::process::{Signal, kill_current_process_group};
use std::time::{Duration, Instant};

/// How long to wait for the ack of an even record; a backup that is lost does not keep death waiting.
const ACK_WAIT: Duration = Duration::from_secs(1);
/// How long to sleep between two looks at the acks.
const ACK_NAP: Duration = Duration::from_micros(50);

/// A primary's log that ends with its host.
pub struct DyingSink {
    inner: PairSink,
    last: LogOffset,
}

impl DyingSink {
    /// `inner` until the record before `last` was appended.
    #[must_use]
    pub fn new(inner: PairSink, last: LogOffset) -> Self {
        Self { inner, last }
    }

    fn die(&self) -> ! {
        if self.last.get().is_multiple_of(2) {
            let deadline = Instant::now() + ACK_WAIT;
            while self.inner.acked() < self.last && Instant::now() < deadline {
                std::thread::sleep(ACK_NAP);
            }
        }
        // Nothing is left to report a failure to, and none is possible: a process may always kill its own group.
        let _ = kill_current_process_group(Signal::KILL);
        loop {
            std::thread::park();
        }
    }
}

impl LogSink for DyingSink {
    fn append(&mut self, position: Position, inputs: &[Input<&[u8]>]) -> Result<LogOffset, PeerLost> {
        let room = usize::try_from(self.last.since(self.inner.end())).unwrap_or(usize::MAX);
        match inputs.split_at_checked(room) {
            // The window stays open in the log: death comes in the middle of it.
            Some((before, _)) => {
                self.inner.append_part(position, before, false)?;
                self.die()
            }
            None => self.inner.append(position, inputs),
        }
    }

    fn is_lost(&self) -> bool {
        self.inner.is_lost()
    }
}
