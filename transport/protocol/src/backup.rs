//! The backup's half of a session: takes the log in, says how far it holds it, hands records to the VM one by
//! one, echoes heartbeats. The driver feeds it, the vCPU thread polls it. It never lets anything out.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::codec::{LogFault, RecordDecoder};
use crate::divergence::Confession;
use crate::ids::{LogOffset, Position, Term};
use crate::limits::{ACK_PARTS, BACKLOG_BYTES, BACKLOG_RECORDS, RESUME_EIGHTHS};
use crate::log::WindowLimit;
use crate::message::{Ack, Heartbeat, Message};
use crate::record::{Input, Record};
use crate::session::{Age, Hearing, NewerTerm, PeerLost, Timing, age};
use crate::takeover::Takeover;
use crate::time::Instant;

/// The backup of a term.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Backup {
    term: Term,
    timing: Timing,
    decoder: RecordDecoder,
    log: Backlog,
    executed: LogOffset,
    position: Position,
    /// The primary's.
    window: WindowLimit,
    /// What the last ack said.
    said: (LogOffset, LogOffset),
    /// Calls for outputs and bytes of log that had come by then.
    said_calls: u64,
    said_bytes: u64,
    hearing: Hearing,
    /// The newest heartbeat that was not echoed yet.
    unechoed: Option<Instant>,
    /// What is left to say, as long as our machine is not the primary's (I16).
    diverged: Option<Confession>,
}

impl Backup {
    /// The backup of `term`, whose log begins at `start`.
    pub fn new(term: Term, timing: Timing, start: LogOffset, now: Instant) -> Self {
        Self {
            term,
            timing,
            decoder: RecordDecoder::new(),
            log: Backlog::new(start),
            executed: start,
            position: Position::ZERO,
            window: WindowLimit::default(),
            said: (start, start),
            said_calls: 0,
            said_bytes: 0,
            hearing: Hearing::new(&timing, now),
            unechoed: None,
            diverged: None,
        }
    }

    /// The same, of a primary with another log window.
    pub fn with_window(mut self, limit: WindowLimit) -> Self {
        self.window = limit;
        self
    }

    // --- The log ---

    /// The next bytes of the log stream, in pieces of any size. To be called while `may_receive`.
    pub fn handle_log_bytes(&mut self, now: Instant, mut chunk: Bytes) -> Result<(), LogFault> {
        self.hearing.note(now);
        self.log.log_bytes += chunk.len() as u64;
        while let Some(record) = self.decoder.decode(&mut chunk)? {
            self.log.push(record);
        }
        Ok(())
    }

    /// Is there room for more of the log? When not, the driver stops reading the stream (I8).
    pub fn may_receive(&self) -> bool {
        self.log.has_room()
    }

    /// Is there room enough to read on, after there was none?
    pub fn may_resume(&self) -> bool {
        self.log.has_ample_room()
    }

    /// The next record for the VM, in the order of the log.
    pub fn poll_deliver(&mut self) -> Option<Record> {
        self.log.pop()
    }

    /// Our VM has applied every record before `upto` and is at `position`.
    pub fn handle_executed(&mut self, upto: LogOffset, position: Position) {
        assert!(upto <= self.log.delivered, "only delivered records are applied");
        self.executed = self.executed.max(upto);
        self.position = self.position.max(position);
    }

    /// Is an ack due? An output waits for it, or the window fills up, or it is the first one: with it the primary has a backup.
    /// What else came is acked with the next heartbeat: an ack costs both hosts a packet and a wake-up.
    pub fn owes_ack(&self) -> bool {
        let is_part = |come: u64, limit: u64| come.saturating_mul(ACK_PARTS) >= limit;
        let is_first = self.said_bytes == 0;
        is_first
            || self.log.calls > self.said_calls
            || is_part(self.log.received.since(self.said.0), self.window.records)
            || is_part(self.log.log_bytes - self.said_bytes, self.window.bytes)
    }

    /// An ack, when there is news (I1: it is given on receipt, not on execution).
    pub fn poll_ack(&mut self) -> Option<Ack> {
        // I16: what a diverged machine was given protects nobody.
        if self.diverged.is_some() {
            return None;
        }
        let news = (self.log.received, self.executed);
        if news == self.said {
            return None;
        }
        self.said = news;
        (self.said_calls, self.said_bytes) = (self.log.calls, self.log.log_bytes);
        let (upto, executed) = news;
        Some(Ack {
            term: self.term,
            upto,
            executed,
            position: self.position,
        })
    }

    // --- Divergence ---

    /// Our machine is not the primary's, as was found at `position`. From here on nothing is acked and nothing will be
    /// claimed, until it is healed.
    pub fn diverge(&mut self, position: Position, what: &str) {
        self.diverged = Some(Confession::new(self.term, position, what));
    }

    /// What the memory of our machine comes to, that has diverged: a hash for each of its pages.
    /// Panics when it has not: that is a bug of the caller.
    pub fn count(&mut self, hashes: &[u64]) {
        let confession = self.diverged.as_mut();
        confession
            .expect("only a diverged backup counts its pages")
            .add_census(self.term, hashes);
    }

    /// The next word of what a diverged backup has to say, for the ack stream.
    pub fn poll_confession(&mut self) -> Option<Message> {
        self.diverged.as_mut()?.poll()
    }

    /// A delta made our machine the primary's again.
    pub fn heal(&mut self) {
        self.diverged = None;
    }

    // --- The lease ---

    /// The primary lives. `now` is read after the heartbeat came, never before (I7).
    pub fn handle_heartbeat(&mut self, now: Instant, beat: &Heartbeat) -> Result<(), NewerTerm> {
        // Ignore: a late word from an earlier term says nothing about this primary.
        // Check: a term to come ends the session.
        if age(self.term, beat.term)? == Age::Stale {
            return Ok(());
        }
        // Act: what is echoed was heard, so whoever relies on the echo is waited for.
        self.hearing.note(now);
        self.unechoed = self.unechoed.max(Some(beat.sent_at));
        Ok(())
    }

    /// The echo of the newest heartbeat, to be sent at once.
    pub fn poll_heartbeat(&mut self, now: Instant) -> Option<Heartbeat> {
        let echo = self.unechoed.take()?;
        Some(Heartbeat {
            term: self.term,
            sent_at: now,
            echo: Some(echo),
        })
    }

    // --- Time ---

    /// When `handle_timeout` has something to do.
    pub fn next_timeout(&self) -> Instant {
        self.hearing.deadline()
    }

    /// Time has passed: is the primary lost?
    pub fn handle_timeout(&mut self, now: Instant) -> Option<PeerLost> {
        self.hearing.verdict(now)
    }

    /// The primary is lost. From here on nothing is echoed and nothing is acked; what was received is still
    /// delivered.
    pub fn suspect(self, now: Instant) -> Takeover {
        let lease_over = self.timing.lease_over(self.hearing.heard());
        Takeover::new(self.term, lease_over, self.log, self.diverged.is_some(), now)
    }

    // --- Facts for status ---

    /// The term of the session.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Every record before this is held.
    pub fn received(&self) -> LogOffset {
        self.log.received
    }

    /// Every record before this has been applied.
    pub fn executed(&self) -> LogOffset {
        self.executed
    }

    /// How many bytes of log were received.
    pub fn log_bytes(&self) -> u64 {
        self.log.log_bytes
    }

    /// How much of the log waits in memory for the VM: records, and bytes of memory.
    pub fn backlog(&self) -> (usize, usize) {
        (self.log.records.len(), self.log.bytes)
    }

    /// Where our VM was when it said so last.
    pub fn position(&self) -> Position {
        self.position
    }

    /// When the primary was last heard.
    pub fn heard(&self) -> Instant {
        self.hearing.heard()
    }
}

/// Records that were received and not yet handed to the VM.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Backlog {
    records: VecDeque<Record>,
    bytes: usize,
    /// As they came, encoded.
    log_bytes: u64,
    received: LogOffset,
    delivered: LogOffset,
    /// How often an output may have come to wait for what was received: at each mark, and at the end of its window.
    calls: u64,
    /// The window that is coming in has a mark.
    is_marked: bool,
}

impl Backlog {
    fn new(start: LogOffset) -> Self {
        Self {
            records: VecDeque::new(),
            bytes: 0,
            log_bytes: 0,
            received: start,
            delivered: start,
            calls: 0,
            is_marked: false,
        }
    }

    fn push(&mut self, record: Record) {
        let is_mark = matches!(record.input, Input::Mark);
        self.is_marked |= is_mark;
        self.calls += u64::from(is_mark || self.is_marked && record.closes);
        self.is_marked &= !record.closes;
        self.bytes += weight(&record);
        self.received = self.received.next();
        self.records.push_back(record);
    }

    pub(crate) fn pop(&mut self) -> Option<Record> {
        let record = self.records.pop_front()?;
        self.bytes -= weight(&record);
        self.delivered = self.delivered.next();
        Some(record)
    }

    fn has_room(&self) -> bool {
        self.records.len() < BACKLOG_RECORDS && self.bytes < BACKLOG_BYTES
    }

    fn has_ample_room(&self) -> bool {
        let used = |used: usize, limit: usize| used as u64 * 8 <= limit as u64 * RESUME_EIGHTHS;
        used(self.records.len(), BACKLOG_RECORDS) && used(self.bytes, BACKLOG_BYTES)
    }

    pub(crate) fn received(&self) -> LogOffset {
        self.received
    }

    pub(crate) fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    pub(crate) fn is_delivered(&self) -> bool {
        self.records.is_empty()
    }
}

/// What a record costs in memory, so that a flood of empty records is not free.
fn weight(record: &Record) -> usize {
    size_of::<Record>() + record.input.payload().len()
}

#[cfg(test)]
mod tests;
