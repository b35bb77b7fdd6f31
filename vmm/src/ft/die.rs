//! Death at a chosen record, for the stories that kill a primary at every point of its log.
//!
//! `lockstep run --die-at-record N` wraps the log of a primary in it. It is a power cut and nothing else: SIGKILL to the
//! own process group, device processes included. For an odd N death comes in the moment in which the record is appended,
//! perhaps in the middle of a window, with nothing of that window entered or ordered. For an even N it comes one window
//! later, when the record is acked and whatever it let go has left.

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
/// How long a device process needs, about, to let go what an ack allows.
const DEPARTURE: Duration = Duration::from_micros(300);

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

    /// Whether death comes only when the record is acked.
    fn is_patient(&self) -> bool {
        self.last.get().is_multiple_of(2)
    }

    fn let_the_record_be_acked(&self) {
        let deadline = Instant::now() + ACK_WAIT;
        while self.inner.acked() < self.last && Instant::now() < deadline {
            std::thread::sleep(ACK_NAP);
        }
        std::thread::sleep(DEPARTURE);
    }
}

/// The power cut.
fn die() -> ! {
    // Nothing is left to report a failure to, and none is possible: a process may always kill its own group.
    let _ = kill_current_process_group(Signal::KILL);
    loop {
        std::thread::park();
    }
}

impl LogSink for DyingSink {
    fn append(&mut self, position: Position, inputs: &[Input<&[u8]>]) -> Result<LogOffset, PeerLost> {
        let end = self.inner.end();
        if self.is_patient() {
            if end >= self.last {
                self.inner.flush();
                self.let_the_record_be_acked();
                die();
            }
            return self.inner.append(position, inputs);
        }
        let room = usize::try_from(self.last.since(end)).unwrap_or(usize::MAX);
        match inputs.split_at_checked(room) {
            Some((before, after)) => {
                self.inner.append_part(position, before, after.is_empty())?;
                self.inner.flush();
                die()
            }
            None => self.inner.append(position, inputs),
        }
    }

    fn flush(&mut self) {
        self.inner.flush();
    }

    fn is_lost(&self) -> bool {
        self.inner.is_lost()
    }
}
