//! The primary's end of a session: log and heartbeats out, acks and echoes in.

use std::collections::VecDeque;

use bytes::Bytes;
use lockstep_protocol::ids::LogOffset;
use lockstep_protocol::message::Message;
use lockstep_protocol::primary::Primary;
use lockstep_protocol::session::PeerLost;

use super::GRACE;
use crate::sim::clock::Moment;
use crate::sim::device::Desk;
use crate::sim::env::Env;
use crate::sim::wires::{Arrival, ConnId, Word};

/// What the driver has to pass on.
#[derive(Clone, Copy, Debug)]
pub(super) struct News {
    /// Acks moved the log this far.
    pub(super) acked: Option<LogOffset>,
    /// An echo came: outputs may leave for longer.
    pub(super) lease: bool,
    /// When the driver wants to be woken.
    pub(super) next: Moment,
}

/// One end of a session.
#[derive(Debug)]
pub(crate) struct PrimaryEnd {
    /// The connection.
    pub(crate) conn: ConnId,
    /// The machine.
    pub(crate) machine: Primary,
    /// Where the log begins.
    pub(crate) start: LogOffset,
    /// How the backup was lost, once it is. Nothing is fed into the machine any more.
    pub(crate) lost: Option<PeerLost>,
    /// There is something to send.
    pub(crate) rung: bool,
    inbox: VecDeque<Word>,
    /// Polled, and waiting for the backup to read.
    outgoing: Bytes,
    /// Log bytes that were sent and not read.
    unread: usize,
    grace: Option<Moment>,
}

impl PrimaryEnd {
    pub(crate) fn new(conn: ConnId, machine: Primary) -> Self {
        Self {
            conn,
            start: machine.end(),
            machine,
            lost: None,
            rung: false,
            inbox: VecDeque::new(),
            outgoing: Bytes::new(),
            unread: 0,
            grace: None,
        }
    }

    /// A word has come to the socket.
    pub(crate) fn arrive(&mut self, arrival: Arrival, word: Word) {
        if arrival.conn == self.conn {
            self.inbox.push_back(word);
        }
    }

    /// A word of an earlier session, as if it belonged to this one.
    pub(crate) fn hear_stale(&mut self, word: Word) {
        self.inbox.push_back(word);
    }

    /// Everything the driver has to do now. What is ready at once is done in any order.
    pub(super) fn drive(&mut self, env: &mut Env, desk: &Desk) -> News {
        let before = self.machine.acked();
        let mut lease = false;
        let time_first = env.dice.chance(500);
        if time_first {
            self.watch(env, desk);
        }
        while self.lost.is_none()
            && let Some(word) = self.inbox.pop_front()
        {
            lease |= self.hear(env, desk, &word);
        }
        if !time_first {
            self.watch(env, desk);
        }
        self.transmit(env, desk);
        let next = match (&self.lost, self.grace) {
            (Some(_), _) => Moment::NEVER,
            (None, Some(grace)) => grace,
            (None, None) => desk.clock.moment(self.machine.next_timeout()),
        };
        let acked = self.machine.acked();
        News {
            acked: (acked > before).then_some(acked),
            lease,
            next,
        }
    }

    /// True for an echo.
    fn hear(&mut self, env: &mut Env, desk: &Desk, word: &Word) -> bool {
        let now = desk.now(env);
        match word {
            Word::Ack(ack) => {
                if let Err(fault) = self.machine.handle_ack(now, ack) {
                    env.accuse("I1", desk.host, &fault);
                    self.lose(env, desk, &PeerLost::Misbehaved(fault.to_string()));
                }
                if let Err(sentence) = env.oracle.strays.acked(self.conn, self.machine.acked()) {
                    env.accuse("I16", desk.host, &sentence);
                }
            }
            Word::Beat(beat) => match self.machine.handle_heartbeat(now, beat) {
                Ok(()) => return true,
                Err(fault) => {
                    env.accuse("I6", desk.host, &fault);
                    self.lose(env, desk, &PeerLost::Misbehaved(fault.to_string()));
                }
            },
            Word::Sick(message) => {
                let heard = match message {
                    Message::Diverged(found) => self.machine.handle_diverged(now, found),
                    Message::Census(census) => self.machine.handle_census(now, census),
                    _ => Ok(()),
                };
                if let Err(fault) = heard {
                    env.accuse("I16", desk.host, &fault);
                    self.lose(env, desk, &PeerLost::Misbehaved(fault.to_string()));
                }
            }
            Word::Read(bytes) => {
                self.unread = self.unread.saturating_sub(*bytes);
                self.rung = true;
            }
            Word::Goodbye(why) => self.lose(env, desk, &PeerLost::Left(*why)),
            Word::Closed | Word::Refused => {
                self.lose(env, desk, &PeerLost::Disconnected("it was closed".into()));
            }
            Word::Hello(_) | Word::Agreed | Word::Log(_) | Word::State(_) => {}
        }
        false
    }

    /// Time passes: heartbeats fall due, and silence becomes loss.
    fn watch(&mut self, env: &mut Env, desk: &Desk) {
        if self.lost.is_some() || self.grace.is_some_and(|grace| env.now < grace) {
            return;
        }
        let now = desk.now(env);
        if self.grace.is_none()
            && let Some(beat) = self.machine.poll_heartbeat(now)
        {
            env.send(self.conn, desk.host, Word::Beat(beat));
        }
        let silent = self.machine.handle_timeout(now);
        match (silent, self.grace.take()) {
            (Some(why), Some(_)) => self.lose(env, desk, &why),
            (Some(_), None) => self.grace = Some(env.now.later(GRACE)),
            (None, _) => {}
        }
    }

    /// What the vCPU appended goes out, as far as the backup reads.
    fn transmit(&mut self, env: &mut Env, desk: &Desk) {
        while self.rung && self.lost.is_none() {
            if self.outgoing.is_empty() {
                self.outgoing = self.machine.poll_transmit().unwrap_or_default();
            }
            let room = env.plan.stream_window.saturating_sub(self.unread);
            let count = self.outgoing.len().min(room);
            self.rung = count > 0;
            if count > 0 {
                // The stream cuts where it likes.
                let cut = match env.dice.chance(200) {
                    true => 1 + env.dice.below(count as u64) as usize,
                    false => count,
                };
                self.unread += cut;
                let piece = self.outgoing.split_to(cut);
                env.send(self.conn, desk.host, Word::Log(piece));
            }
        }
    }

    /// The session is over, and whoever waits on this host knows it; the backup may hear of it.
    pub(crate) fn lose(&mut self, env: &mut Env, desk: &Desk, why: &PeerLost) {
        env.tell(desk.host, || format!("loses its backup: {why}"));
        self.lost.get_or_insert_with(|| why.clone());
        if env.dice.chance(800) {
            env.send(self.conn, desk.host, Word::Closed);
        }
    }
}
