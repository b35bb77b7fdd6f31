//! Before there is a session: the primary dials, hellos are exchanged and judged by both, and the first connection on
//! which the primary agrees becomes the session. As `transport/quic/src/session.rs` does it.

use std::collections::VecDeque;

use lockstep_protocol::backup::Backup;
use lockstep_protocol::message::Hello;
use lockstep_protocol::primary::Primary;

use super::{BackupEnd, PrimaryEnd};
use crate::sim::agenda::Actor;
use crate::sim::clock::Moment;
use crate::sim::env::Env;
use crate::sim::process::{Following, Pair, Part, Process};
use crate::sim::wires::{Arrival, ConnId, Place, Word};

/// How long one attempt to connect may take before the next begins.
const ATTEMPT: u64 = 1_000_000_000;
/// The longest pause between attempts.
const PAUSE: (u64, u64) = (20_000_000, 500_000_000);

/// A primary that looks for its backup.
#[derive(Debug)]
pub(crate) struct Dialing {
    hello: Hello,
    /// Where the backup is.
    to: Place,
    attempt: Option<(ConnId, Moment)>,
    heard: VecDeque<(ConnId, Word)>,
}

impl Dialing {
    pub(crate) fn new(hello: Hello, to: Place) -> Self {
        Self {
            hello,
            to,
            attempt: None,
            heard: VecDeque::new(),
        }
    }

    pub(crate) fn arrive(&mut self, arrival: Arrival, word: Word) {
        self.heard.push_back((arrival.conn, word));
    }
}

/// A backup that waits for its primary.
#[derive(Debug)]
pub(crate) struct Listening {
    hello: Hello,
    heard: VecDeque<(ConnId, Word)>,
    /// The connections on which this very process has said hello: nobody else's keys are known here.
    greeted: Vec<ConnId>,
    /// Streams overtake each other: what is for the session may come before there is one.
    early: Vec<(ConnId, Word)>,
}

impl Listening {
    pub(crate) fn new(hello: Hello) -> Self {
        Self {
            hello,
            heard: VecDeque::new(),
            greeted: Vec::new(),
            early: Vec::new(),
        }
    }

    pub(crate) fn arrive(&mut self, arrival: Arrival, word: Word) {
        self.heard.push_back((arrival.conn, word));
    }
}

impl Process {
    pub(super) fn dial(&mut self, env: &mut Env) {
        let Pair::Dialing(dialing) = &mut self.pair else {
            return;
        };
        let host = self.desk.host;
        while let Some((conn, word)) = dialing.heard.pop_front() {
            if dialing.attempt.is_none_or(|(current, _)| current != conn) {
                continue;
            }
            match word {
                Word::Hello(theirs) if Hello::check(&dialing.hello, &theirs).is_ok() => {
                    return self.meet_backup(env, conn);
                }
                Word::Hello(_) | Word::Refused => {
                    env.send(conn, host, Word::Refused);
                    return self.backup_is_no_match(env);
                }
                _ => dialing.attempt = Some((conn, env.now)),
            }
        }
        let over = dialing.attempt.is_none_or(|(_, until)| env.now >= until);
        if over {
            if let Some((conn, _)) = dialing.attempt {
                env.send(conn, host, Word::Closed);
            }
            let conn = env.wires.connect(host, dialing.to);
            let until = env.now.later(ATTEMPT + env.dice.between(PAUSE));
            dialing.attempt = Some((conn, until));
            let hello = Word::Hello(Box::new(dialing.hello.clone()));
            env.send(conn, host, hello);
        }
        let until = dialing.attempt.map_or(env.now, |(_, until)| until);
        self.wake_driver_at(env, until);
    }

    fn meet_backup(&mut self, env: &mut Env, conn: ConnId) {
        let Pair::Dialing(dialing) = &self.pair else {
            return;
        };
        let newest = match self.part {
            Part::Meeting { newest } => newest,
            Part::Pairing { .. } => self.desk.term,
            _ => return,
        };
        env.tell(self.desk.host, || "has found its backup".into());
        env.send(conn, self.desk.host, Word::Agreed);
        let hello = &dialing.hello;
        let now = self.desk.now(env);
        let machine = Primary::new(hello.term, hello.timing, hello.start, now).with_window(env.plan.window);
        self.pair = Pair::Primary(Box::new(PrimaryEnd::new(conn, machine)));
        self.desk.session = Some(conn);
        self.ring(env, Actor::Driver);
        match self.part {
            Part::Pairing { .. } => self.claim_with_spare(env),
            _ => self.claim_first(env, newest, false),
        }
    }

    /// Whoever answered is no backup of this VM: a host that lives alone goes on so, any other has nothing to live for.
    fn backup_is_no_match(&mut self, env: &mut Env) {
        match self.part {
            Part::Pairing { .. } => self.stay_alone(env, "the spare is no match"),
            _ => self.end(env, "the other host is no match"),
        }
    }

    pub(super) fn listen(&mut self, env: &mut Env) {
        let Pair::Listening(listening) = &mut self.pair else {
            return;
        };
        let host = self.desk.host;
        while let Some((conn, word)) = listening.heard.pop_front() {
            match word {
                Word::Hello(theirs) if Hello::check(&listening.hello, &theirs).is_ok() => {
                    let ours = Word::Hello(Box::new(listening.hello.clone()));
                    listening.greeted.push(conn);
                    env.send(conn, host, ours);
                }
                Word::Hello(_) => {
                    env.send(conn, host, Word::Refused);
                    return self.end(env, "the other host is no match");
                }
                _ if !listening.greeted.contains(&conn) => {}
                Word::Refused => return self.end(env, "the other host refuses it"),
                Word::Agreed => return self.meet_primary(env, conn),
                word => listening.early.push((conn, word)),
            }
        }
    }

    fn meet_primary(&mut self, env: &mut Env, conn: ConnId) {
        let Pair::Listening(listening) = &mut self.pair else {
            return;
        };
        env.tell(self.desk.host, || "has its primary".into());
        let hello = &listening.hello;
        let start = hello.start;
        self.desk.term = hello.term;
        let machine = Backup::new(hello.term, hello.timing, hello.start, self.desk.now(env))
            .with_window(env.plan.window);
        let mut end = BackupEnd::new(conn, machine);
        let early = std::mem::take(&mut listening.early).into_iter();
        for (other, word) in early.chain(std::mem::take(&mut listening.heard)) {
            end.hear(other, word);
        }
        self.pair = Pair::Backup(Box::new(end));
        self.becomes(
            env,
            Part::Following(Following {
                applied: start,
                start,
                ..Following::default()
            }),
        );
        self.ring(env, Actor::Driver);
        self.ring(env, Actor::Vcpu);
    }
}
