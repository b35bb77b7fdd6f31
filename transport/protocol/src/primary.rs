//! The primary's half of a session: appends records, counts acks, holds the lease. The vCPU thread appends,
//! the driver feeds it what the backup says and sends what it polls. It never releases an output: `outbox` does.

mod divergence;

use bytes::{Bytes, BytesMut};

use crate::codec::RecordEncoder;
use crate::divergence::Health;
use crate::ids::{LogOffset, Position, Term};
use crate::limits::{HEAL_MAX, MAX_SLOWDOWN, OUTGOING_BYTES, SLOW_ABOVE_RECORDS, SLOW_FULL_RECORDS};
use crate::log::{LogWindow, WindowLimit};
use crate::message::{Ack, Heartbeat};
use crate::outbox::Gate;
use crate::record::{Input, Record};
use crate::session::{Age, Hearing, NewerTerm, PeerLost, Timing, age};
use crate::takeover::Claiming;
use crate::time::{Duration, Instant};

/// What an honest backup cannot ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AckFault {
    /// It is of a term to come.
    #[error(transparent)]
    NewerTerm(#[from] NewerTerm),
    /// It acks records that were never made.
    #[error("An ack up to {claimed}, the log ends at {end}")]
    BeyondLog {
        /// The ack.
        claimed: LogOffset,
        /// The end of the log.
        end: LogOffset,
    },
    /// It executed records that it does not hold.
    #[error("The backup says that it executed up to {executed} and holds up to {upto}")]
    ExecutedUnheld {
        /// What it executed.
        executed: LogOffset,
        /// What it holds.
        upto: LogOffset,
    },
    /// Its machine has diverged and was not healed.
    #[error("An ack up to {0} of a backup that has diverged")]
    Diverged(LogOffset),
    /// It ran past the window that the log leads to.
    #[error("The backup says that it is at position {claimed}, the log leads to {limit}")]
    RanAhead {
        /// Where it says it is.
        claimed: Position,
        /// The furthest it can be.
        limit: Position,
    },
}

/// What an honest backup cannot say in a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeartbeatFault {
    /// It is of a term to come.
    #[error(transparent)]
    NewerTerm(#[from] NewerTerm),
    /// It echoes a heartbeat that was never sent.
    #[error("An echo of a heartbeat that was never sent")]
    EchoOfNothing,
}

/// The primary of a term, as long as it has a backup.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Primary {
    term: Term,
    timing: Timing,
    encoder: RecordEncoder,
    outgoing: BytesMut,
    window: LogWindow,
    position: Position,
    executed: LogOffset,
    executed_position: Position,
    input_bytes: u64,
    hearing: Hearing,
    next_heartbeat: Instant,
    last_sent: Option<Instant>,
    lease_until: Instant,
    health: Health,
    /// When a backup that has diverged is given up.
    heal_by: Instant,
}

impl Primary {
    /// The primary of `term`, whose log begins at `start`. It may release nothing before its first echo.
    pub fn new(term: Term, timing: Timing, start: LogOffset, now: Instant) -> Self {
        Self {
            term,
            timing,
            encoder: RecordEncoder::new(),
            outgoing: BytesMut::with_capacity(OUTGOING_BYTES),
            window: LogWindow::new(WindowLimit::default(), start),
            position: Position::ZERO,
            executed: start,
            executed_position: Position::ZERO,
            input_bytes: 0,
            hearing: Hearing::new(&timing, now),
            next_heartbeat: now,
            last_sent: None,
            lease_until: Instant::ZERO,
            health: Health::default(),
            heal_by: Instant::FOREVER,
        }
    }

    /// The same with another window. To be called before the first record.
    pub fn with_window(mut self, limit: WindowLimit) -> Self {
        self.window = LogWindow::new(limit, self.window.end());
        self
    }

    // --- The log ---

    /// Appends one record and gives the offset after it: what an output with this cause needs. Asks for no
    /// room: the vCPU asks `has_room` in its window, before it lets anything enter.
    /// Panics when `position` goes back or names a closed window (I2): that is a bug of the caller.
    pub fn append(&mut self, position: Position, closes: bool, input: Input<&[u8]>) -> LogOffset {
        let record = Record {
            position,
            closes,
            input,
        };
        let before = self.outgoing.len();
        self.encoder.encode(&mut self.outgoing, &record);
        self.position = position;
        self.input_bytes += record.input.payload().len() as u64;
        self.window.append((self.outgoing.len() - before) as u64)
    }

    /// Appends what enters in one window, the last record closing it if `closes`, and gives the offset before the
    /// first.
    pub fn append_window(&mut self, position: Position, closes: bool, inputs: &[Input<&[u8]>]) -> LogOffset {
        let start = self.end();
        for (nth, input) in (1..).zip(inputs) {
            self.append(position, closes && nth == inputs.len(), input.borrowed());
        }
        start
    }

    /// How many bytes of the log wait to be polled.
    pub fn unsent_bytes(&self) -> usize {
        self.outgoing.len()
    }

    /// Encoded log bytes to be sent, in order, on the log stream.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        if self.outgoing.is_empty() {
            return None;
        }
        self.window.mark();
        Some(self.outgoing.split().freeze())
    }

    /// May more records be appended? When not, the vCPU waits in its window (I8).
    pub fn has_room(&self) -> bool {
        self.window.has_room()
    }

    /// Is there room enough to go on, after there was none? Asked by who waits.
    pub fn has_ample_room(&self) -> bool {
        self.window.has_ample_room()
    }

    /// What the vCPU should wait in this window so that the backup keeps up: nothing below a threshold of
    /// lag, then in proportion to it.
    pub fn slowdown(&self) -> Duration {
        let excess = self
            .lag()
            .saturating_sub(SLOW_ABOVE_RECORDS)
            .min(SLOW_FULL_RECORDS - SLOW_ABOVE_RECORDS);
        let full = MAX_SLOWDOWN.as_nanos() as u64;
        Duration::from_nanos(full * excess / (SLOW_FULL_RECORDS - SLOW_ABOVE_RECORDS))
    }

    /// The backup holds and has executed part of the log.
    pub fn handle_ack(&mut self, now: Instant, ack: &Ack) -> Result<(), AckFault> {
        // Ignore: a late word from an earlier term proves nothing about this log.
        if age(self.term, ack.term)? == Age::Stale {
            return Ok(());
        }
        // Check: what an honest peer cannot say ends the session.
        self.check_ack(ack)?;
        if ack.upto > self.acked() && !self.health.handle_ack(ack.upto) {
            return Err(AckFault::Diverged(ack.upto));
        }
        // Act: acked never falls and never passes the end (I1).
        self.hearing.note(now);
        if self.health == Health::Equal {
            self.heal_by = Instant::FOREVER;
        }
        self.window.ack(ack.upto);
        self.executed = self.executed.max(ack.executed);
        self.executed_position = self.executed_position.max(ack.position);
        Ok(())
    }

    fn check_ack(&self, ack: &Ack) -> Result<(), AckFault> {
        let end = self.window.end();
        if ack.upto > end {
            return Err(AckFault::BeyondLog {
                claimed: ack.upto,
                end,
            });
        }
        if ack.executed > ack.upto {
            return Err(AckFault::ExecutedUnheld {
                executed: ack.executed,
                upto: ack.upto,
            });
        }
        // Past the last record the backup runs to the next window and waits there (I3).
        let limit = self.position.next();
        if ack.position > limit {
            return Err(AckFault::RanAhead {
                claimed: ack.position,
                limit,
            });
        }
        Ok(())
    }

    // --- The lease ---

    /// A heartbeat, when one is due. `now` is read before it is sent: the lease counts from there (I6).
    pub fn poll_heartbeat(&mut self, now: Instant) -> Option<Heartbeat> {
        if now < self.next_heartbeat {
            return None;
        }
        self.next_heartbeat = now + self.timing.heartbeat;
        self.last_sent = Some(now);
        Some(Heartbeat {
            term: self.term,
            sent_at: now,
            echo: None,
        })
    }

    /// The backup lives, and lived after it got the heartbeat that it echoes.
    pub fn handle_heartbeat(&mut self, now: Instant, beat: &Heartbeat) -> Result<(), HeartbeatFault> {
        // Ignore: a late word from an earlier term renews nothing.
        if age(self.term, beat.term)? == Age::Stale {
            return Ok(());
        }
        // Check: only what was sent can be echoed.
        if beat
            .echo
            .is_some_and(|echo| self.last_sent.is_none_or(|sent| echo > sent))
        {
            return Err(HeartbeatFault::EchoOfNothing);
        }
        // Act: the lease counts from the sending of what is echoed, and never moves back (I6).
        self.hearing.note(now);
        if let Some(sent_at) = beat.echo {
            self.lease_until = self.lease_until.max(sent_at + self.timing.lease);
        }
        Ok(())
    }

    /// Outputs may leave before this moment, not at it.
    pub fn lease_until(&self) -> Instant {
        self.lease_until
    }

    /// What the device processes are told.
    pub fn gate(&self) -> Gate {
        Gate {
            acked: self.acked(),
            lease_until: self.lease_until,
        }
    }

    // --- Time ---

    /// When `poll_heartbeat` or `handle_timeout` has something to do.
    pub fn next_timeout(&self) -> Instant {
        self.next_heartbeat.min(self.hearing.deadline()).min(self.heal_by)
    }

    /// Time has passed: is the backup lost?
    pub fn handle_timeout(&mut self, now: Instant) -> Option<PeerLost> {
        match now < self.heal_by {
            true => self.hearing.verdict(now),
            false => Some(PeerLost::Unhealed(HEAL_MAX)),
        }
    }

    /// The backup is lost: all that is left to do is to claim the next term. This machine is of no more use; it is not consumed
    /// because in the product it lies behind a lock that the thread of the session still holds on to.
    pub fn suspect(&self, now: Instant) -> Claiming {
        Claiming::new(self.term, now)
    }

    // --- Facts for status ---

    /// The term of this reign.
    pub fn term(&self) -> Term {
        self.term
    }

    /// The offset after the last record.
    pub fn end(&self) -> LogOffset {
        self.window.end()
    }

    /// The backup holds every record before this.
    pub fn acked(&self) -> LogOffset {
        self.window.acked()
    }

    /// The backup has applied every record before this.
    pub fn executed(&self) -> LogOffset {
        self.executed
    }

    /// Where the backup said last that its VM is.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Where the backup's VM says it is.
    pub fn executed_position(&self) -> Position {
        self.executed_position
    }

    /// How many records the backup still has to apply.
    pub fn lag(&self) -> u64 {
        self.window.end().since(self.executed)
    }

    /// Encoded bytes of all records so far.
    pub fn log_bytes(&self) -> u64 {
        self.window.appended_bytes()
    }

    /// Payload bytes of all records so far: what entered the guest.
    pub fn input_bytes(&self) -> u64 {
        self.input_bytes
    }
}

#[cfg(test)]
mod tests;
