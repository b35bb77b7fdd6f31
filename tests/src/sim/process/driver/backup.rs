//! The backup's end of a session: log and heartbeats in, acks and echoes out.

use std::collections::VecDeque;

use bytes::Bytes;
use lockstep_protocol::backup::Backup;
use lockstep_protocol::ids::{LogOffset, Position, Term};
use lockstep_protocol::record::Record;
use lockstep_protocol::session::PeerLost;
use lockstep_protocol::takeover::Takeover;
use lockstep_protocol::time::Instant;

use super::GRACE;
use crate::sim::clock::Moment;
use crate::sim::device::Desk;
use crate::sim::env::Env;
use crate::sim::wires::{Arrival, ConnId, Word};

/// How many pieces of the log are taken at once.
const PIECES: usize = 32;

/// One end of a session.
#[derive(Debug)]
pub(crate) struct BackupEnd {
    /// The connection.
    pub(crate) conn: ConnId,
    /// The machine, or what is left of it.
    pub(crate) intake: Intake,
    inbox: VecDeque<Word>,
    /// The log stream as far as it has come and was not read.
    stream: VecDeque<Bytes>,
    paused: bool,
    news: bool,
    grace: Option<Moment>,
}

/// The machine on its way from backup to whatever comes after.
#[derive(Debug)]
pub(crate) enum Intake {
    /// The session runs.
    Session(Box<Backup>),
    /// It is over.
    Over(Box<Lost>),
    /// The vCPU has taken what is left.
    HandedOver,
}

/// A session that is over.
#[derive(Debug)]
pub(crate) struct Lost {
    /// What is left.
    pub(crate) takeover: Takeover,
    /// Why it is over.
    pub(crate) why: PeerLost,
    /// When the primary was last heard.
    pub(crate) heard: Instant,
}

impl BackupEnd {
    pub(crate) fn new(conn: ConnId, machine: Backup) -> Self {
        Self {
            conn,
            intake: Intake::Session(Box::new(machine)),
            inbox: VecDeque::new(),
            stream: VecDeque::new(),
            paused: false,
            news: false,
            grace: None,
        }
    }

    /// A word has come to the socket.
    pub(crate) fn arrive(&mut self, arrival: Arrival, word: Word) {
        self.hear(arrival.conn, word);
    }

    /// A word that may be of this connection.
    pub(crate) fn hear(&mut self, conn: ConnId, word: Word) {
        match word {
            _ if conn != self.conn => {}
            Word::Log(bytes) => self.stream.push_back(bytes),
            word => self.inbox.push_back(word),
        }
    }

    /// A word of an earlier session, as if it belonged to this one.
    pub(crate) fn hear_stale(&mut self, word: Word) {
        self.inbox.push_back(word);
    }

    /// Everything the driver has to do now. Says when it wants to be woken, and whether the vCPU has to be.
    pub(super) fn drive(&mut self, env: &mut Env, desk: &Desk) -> (Moment, bool) {
        let time_first = env.dice.chance(500);
        if time_first {
            self.watch(env, desk);
        }
        while matches!(self.intake, Intake::Session(_))
            && let Some(word) = self.inbox.pop_front()
        {
            self.hear_word(env, desk, &word);
        }
        let received = self.take_log(env, desk);
        self.send_ack(env, desk);
        if !time_first {
            self.watch(env, desk);
        }
        match (&self.intake, self.grace) {
            (Intake::Session(_), Some(grace)) => (grace, received),
            (Intake::Session(backup), None) => (desk.clock.moment(backup.next_timeout()), received),
            (Intake::Over(_) | Intake::HandedOver, _) => (Moment::NEVER, true),
        }
    }

    fn hear_word(&mut self, env: &mut Env, desk: &Desk, word: &Word) {
        let Intake::Session(backup) = &mut self.intake else {
            return;
        };
        let now = desk.now(env);
        match word {
            Word::Beat(beat) => match backup.handle_heartbeat(now, beat) {
                Ok(()) => {
                    if let Some(echo) = backup.poll_heartbeat(now) {
                        env.send(self.conn, desk.host, Word::Beat(echo));
                    }
                    self.news = true;
                }
                Err(fault) => {
                    env.accuse("I9", desk.host, &fault);
                    self.lose(env, desk, &PeerLost::Misbehaved(fault.to_string()));
                }
            },
            Word::Goodbye(why) => self.lose(env, desk, &PeerLost::Left(*why)),
            Word::Closed | Word::Refused => {
                self.lose(env, desk, &PeerLost::Disconnected("it was closed".into()));
            }
            Word::Hello(_)
            | Word::Agreed
            | Word::Log(_)
            | Word::Read(_)
            | Word::Ack(_)
            | Word::Sick(_)
            | Word::State(_) => {}
        }
    }

    /// The log comes in while there is room for it (I8). True if any came.
    fn take_log(&mut self, env: &mut Env, desk: &Desk) -> bool {
        let mut any = false;
        for _ in 0..PIECES {
            let Intake::Session(backup) = &mut self.intake else {
                break;
            };
            // Who has stopped reading waits until the vCPU says that there is ample room again.
            self.paused = self.paused || !backup.may_receive();
            if self.paused {
                break;
            }
            let Some(piece) = self.stream.pop_front() else {
                break;
            };
            env.send(self.conn, desk.host, Word::Read(piece.len()));
            if let Err(fault) = backup.handle_log_bytes(desk.now(env), piece) {
                env.accuse("I2", desk.host, &fault);
                self.lose(env, desk, &PeerLost::Misbehaved(fault.to_string()));
            }
            self.news |= self.owes_ack();
            any = true;
        }
        any
    }

    fn owes_ack(&self) -> bool {
        matches!(&self.intake, Intake::Session(backup) if backup.owes_ack())
    }

    fn send_ack(&mut self, env: &mut Env, desk: &Desk) {
        let Intake::Session(backup) = &mut self.intake else {
            return;
        };
        while let Some(word) = backup.poll_confession() {
            env.send(self.conn, desk.host, Word::Sick(word));
        }
        if std::mem::take(&mut self.news)
            && let Some(ack) = backup.poll_ack()
        {
            env.send(self.conn, desk.host, Word::Ack(ack));
        }
    }

    /// Time passes: silence becomes loss.
    fn watch(&mut self, env: &mut Env, desk: &Desk) {
        let Intake::Session(backup) = &mut self.intake else {
            return;
        };
        if self.grace.is_some_and(|grace| env.now < grace) {
            return;
        }
        match (backup.handle_timeout(desk.now(env)), self.grace.take()) {
            (Some(why), Some(_)) => self.lose(env, desk, &why),
            (Some(_), None) => self.grace = Some(env.now.later(GRACE)),
            (None, _) => {}
        }
    }

    /// The session is over. Nothing can be echoed or acked any more; the primary may hear of it.
    pub(crate) fn lose(&mut self, env: &mut Env, desk: &Desk, why: &PeerLost) {
        self.intake = match std::mem::replace(&mut self.intake, Intake::HandedOver) {
            Intake::Session(backup) => Intake::Over(Box::new(Lost {
                heard: backup.heard(),
                takeover: backup.suspect(desk.now(env)),
                why: why.clone(),
            })),
            // The first loss counts.
            over => return self.intake = over,
        };
        env.tell(desk.host, || format!("loses its primary: {why}"));
        if env.dice.chance(800) {
            env.send(self.conn, desk.host, Word::Closed);
        }
    }

    /// The next record for the guest, while the session runs.
    pub(crate) fn deliver(&mut self) -> Option<Record> {
        match &mut self.intake {
            Intake::Session(backup) => backup.poll_deliver(),
            Intake::Over(_) | Intake::HandedOver => None,
        }
    }

    /// The guest has applied so many records and is there.
    pub(crate) fn executed(&mut self, upto: LogOffset, position: Position) {
        if let Intake::Session(backup) = &mut self.intake {
            backup.handle_executed(upto, position);
        }
    }

    /// The guest is not the primary's any more.
    pub(crate) fn diverge(&mut self, env: &mut Env, at: Position, hashes: &[u64]) {
        match &mut self.intake {
            Intake::Session(backup) => {
                env.oracle.strays.strayed(self.conn, backup.received());
                backup.diverge(at, "it has diverged");
                backup.count(hashes);
            }
            Intake::Over(lost) => lost.takeover.handle_diverged(),
            Intake::HandedOver => {}
        }
    }

    /// A delta made it the primary's again.
    pub(crate) fn heal(&mut self, env: &mut Env) {
        env.oracle.strays.healed(self.conn);
        match &mut self.intake {
            Intake::Session(backup) => backup.heal(),
            Intake::Over(lost) => lost.takeover.handle_healed(),
            Intake::HandedOver => {}
        }
        self.news = true;
    }

    /// Was reading paused, and can it go on now?
    pub(crate) fn resumes(&mut self) -> bool {
        let Intake::Session(backup) = &self.intake else {
            return false;
        };
        let resumes = self.paused && backup.may_resume();
        self.paused &= !resumes;
        resumes
    }

    /// What is left of a session that is over, once.
    pub(crate) fn take_lost(&mut self) -> Option<Lost> {
        match std::mem::replace(&mut self.intake, Intake::HandedOver) {
            Intake::Over(lost) => Some(*lost),
            other => {
                self.intake = other;
                None
            }
        }
    }

    /// The term of the session.
    pub(crate) fn term(&self) -> Option<Term> {
        match &self.intake {
            Intake::Session(backup) => Some(backup.term()),
            Intake::Over(lost) => Some(lost.takeover.term()),
            Intake::HandedOver => None,
        }
    }

    /// How much waits in memory to be replayed, in records and in bytes, while the session runs.
    pub(crate) fn backlog(&self) -> Option<(usize, usize)> {
        match &self.intake {
            Intake::Session(backup) => Some(backup.backlog()),
            Intake::Over(_) | Intake::HandedOver => None,
        }
    }

    /// Every record before this is here.
    pub(crate) fn received(&self) -> Option<LogOffset> {
        match &self.intake {
            Intake::Session(backup) => Some(backup.received()),
            Intake::Over(lost) => Some(lost.takeover.end()),
            Intake::HandedOver => None,
        }
    }
}
