//! Death at a chosen record, for the stories that kill a primary at every point of its log.
//!
//! `lockstep run --die-at-record N` wraps the log of a primary in it. It is a power cut and nothing else: SIGKILL to the
//! own process group, device processes included. N also says how far everything else got by then, see `Manner`.

use super::pair::PairSink;
use super::record::{LogSink, PeerLost};
use lockstep_protocol::divergence::Patient;
use lockstep_protocol::ids::{LogOffset, Position};
use lockstep_protocol::record::Input;
use rustix::process::{Signal, kill_current_process_group};
use std::thread;
use std::time::{Duration, Instant};

/// How long to wait for the ack of the last record; a backup that is lost does not keep death waiting.
const ACK_WAIT: Duration = Duration::from_secs(1);
/// How long to sleep between two looks at the acks.
const ACK_NAP: Duration = Duration::from_micros(50);
/// How long a device process needs, about, to let go what an ack allows.
const DEPARTURE: Duration = Duration::from_micros(300);
/// How long a host that fell silent lives on. Well below the lease, so that only the missing acks hold its outputs.
const SILENCE: Duration = Duration::from_millis(5);

/// How the host dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// When the record is acked and whatever it let go has left: N is even.
    Acked,
    /// Some time after the record, which never leaves this host, and nothing behind it: N is 1 more than a multiple of
    /// 4. Whatever the guest says in that time must never leave either.
    Silent,
    /// In the moment in which the record is appended, perhaps in the middle of a window: every other N.
    AtOnce,
}

impl Manner {
    fn of(last: LogOffset) -> Self {
        match last.get() % 4 {
            1 => Self::Silent,
            3 => Self::AtOnce,
            _ => Self::Acked,
        }
    }
}

/// A primary's log that ends with its host.
pub struct DyingSink {
    inner: PairSink,
    last: LogOffset,
    manner: Manner,
    /// Death is on its way.
    doomed: bool,
}

impl DyingSink {
    /// `inner` until the record before `last` was appended.
    #[must_use]
    pub fn new(inner: PairSink, last: LogOffset) -> Self {
        Self {
            inner,
            last,
            manner: Manner::of(last),
            doomed: false,
        }
    }

    /// The records that are there are the last ones to be seen.
    fn die_acked(&mut self) -> ! {
        self.inner.flush();
        let deadline = Instant::now() + ACK_WAIT;
        while self.inner.acked() < self.last && Instant::now() < deadline {
            thread::sleep(ACK_NAP);
        }
        thread::sleep(DEPARTURE);
        die()
    }

    /// The host goes on, unheard, for a while.
    fn fall_silent(&mut self) {
        self.inner.fall_silent();
        self.doomed = true;
        thread::spawn(|| {
            thread::sleep(SILENCE);
            die()
        });
    }
}

/// The power cut.
fn die() -> ! {
    // Nothing is left to report a failure to, and none is possible: a process may always kill its own group.
    let _ = kill_current_process_group(Signal::KILL);
    loop {
        thread::park();
    }
}

impl LogSink for DyingSink {
    fn append(&mut self, position: Position, inputs: &[Input<&[u8]>]) -> Result<LogOffset, PeerLost> {
        let end = self.inner.end();
        let room = usize::try_from(self.last.since(end)).unwrap_or(usize::MAX);
        match self.manner {
            Manner::Acked if end >= self.last => self.die_acked(),
            Manner::Silent if inputs.len() >= room && !self.doomed => self.fall_silent(),
            Manner::AtOnce if inputs.len() >= room => {
                let (before, after) = inputs.split_at(room);
                self.inner.append_part(position, before, after.is_empty())?;
                self.inner.flush();
                die()
            }
            _ => {}
        }
        self.inner.append(position, inputs)
    }

    fn flush(&mut self) {
        self.inner.flush();
    }

    fn is_lost(&self) -> bool {
        self.inner.is_lost()
    }

    fn has_equal_backup(&self) -> bool {
        self.inner.has_equal_backup()
    }

    fn wants_heal(&self) -> bool {
        self.inner.wants_heal()
    }

    fn poll_heal(&mut self) -> Option<Patient> {
        self.inner.poll_heal()
    }

    fn treat(&mut self, position: Position, delta: &[Input<&[u8]>]) -> Result<(), PeerLost> {
        self.inner.treat(position, delta)
    }

    fn end(&self) -> LogOffset {
        self.inner.end()
    }
}
