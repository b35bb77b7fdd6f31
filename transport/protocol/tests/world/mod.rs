//! Two hosts, a link, an arbiter and an outside, in virtual time of one millisecond a step. Small enough to
//! read; the whole VM is "one record in, one reply out". Same actions, same run.

use std::collections::VecDeque;

use bytes::Bytes;
use lockstep_protocol::*;

/// What is said between hosts.
enum Word {
    Log(Bytes),
    Ack(Ack),
    Beat(Heartbeat),
}

/// What a host is at the moment.
enum State {
    Primary(Box<Primary>),
    Backup(Box<Backup>),
    Claiming(Claiming),
    Takeover(Box<Takeover>),
    Alone,
    Halted,
}

/// A host: its state, its VM (how many requests it has executed) and its device's outbox.
pub(crate) struct Host {
    name: Holder,
    state: State,
    gate: Gate,
    outbox: Outbox<u64>,
    inbox: VecDeque<(Instant, Word)>,
    pub(crate) asleep: bool,
    pub(crate) replay_per_step: usize,
    position: Position,
    executed: LogOffset,
    /// The requests that this host's VM knows.
    pub(crate) known: Vec<u64>,
}

/// A reply that left a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) host: usize,
    pub(crate) at: Instant,
    pub(crate) to: u64,
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) hosts: [Host; 2],
    pub(crate) cut: bool,
    /// The backup's connection broke; it hears no more.
    pub(crate) broken: bool,
    pub(crate) arbiter_reachable: bool,
    register: (Term, Option<Holder>),
    pub(crate) replies: Vec<Reply>,
    pub(crate) promoted: Vec<(usize, Instant)>,
}

pub(crate) const A: usize = 0;
pub(crate) const B: usize = 1;
const TERM: Term = Term::new(1);

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl Host {
    fn new(name: &str, state: State) -> Self {
        Self {
            name: Holder {
                node: NodeName::new(name).unwrap(),
                incarnation: Incarnation::new(name.len() as u128),
            },
            state,
            gate: Gate::SHUT,
            outbox: Outbox::new(OutboxLimit::default()),
            inbox: VecDeque::new(),
            asleep: false,
            replay_per_step: usize::MAX,
            position: Position::ZERO,
            executed: LogOffset::ZERO,
            known: Vec::new(),
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        matches!(self.state, State::Primary(_) | State::Alone)
    }

    pub(crate) fn is_halted(&self) -> bool {
        matches!(self.state, State::Halted)
    }

    pub(crate) fn held(&self) -> usize {
        self.outbox.len()
    }

    fn execute(&mut self, record: &Record) {
        self.position = record.position;
        self.executed = self.executed.next();
        if let Input::Console { bytes } = &record.input {
            self.known.push(u64::from_le_bytes(bytes[..].try_into().unwrap()));
        }
    }

    /// A request from outside enters; the guest answers in the next window.
    fn serve(&mut self, request: u64) {
        let at = self.position.next();
        self.position = at;
        let needs = match &mut self.state {
            State::Primary(primary) => {
                primary.append(
                    at,
                    true,
                    Input::Console {
                        bytes: &request.to_le_bytes(),
                    },
                );
                self.position = at.next();
                primary.append(at.next(), true, Input::Mark)
            }
            State::Alone => LogOffset::ZERO,
            _ => return,
        };
        self.known.push(request);
        self.outbox.hold(needs, 8, request).unwrap();
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let now = Instant::from_nanos(1_000_000_000);
        let primary = Primary::new(TERM, Timing::default(), LogOffset::ZERO, now);
        let backup = Backup::new(TERM, Timing::default(), LogOffset::ZERO, now);
        let mut world = Self {
            now,
            hosts: [
                Host::new("a", State::Primary(Box::new(primary))),
                Host::new("bb", State::Backup(Box::new(backup))),
            ],
            cut: false,
            broken: false,
            arbiter_reachable: true,
            register: (TERM, None),
            replies: Vec::new(),
            promoted: Vec::new(),
        };
        world.run(ms(50));
        world
    }

    /// A client asks whichever host is live and awake.
    pub(crate) fn ask(&mut self, request: u64) {
        if let Some(host) = self.hosts.iter_mut().find(|host| host.is_live() && !host.asleep) {
            host.serve(request);
        }
    }

    pub(crate) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.now = self.now + ms(1);
            (0..2)
                .filter(|host| !self.hosts[*host].asleep)
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|host| {
                    self.hear(host);
                    self.think(host);
                    self.let_out(host);
                });
        }
    }

    pub(crate) fn live(&self) -> Vec<usize> {
        (0..2).filter(|host| self.hosts[*host].is_live()).collect()
    }

    pub(crate) fn answered(&self) -> Vec<u64> {
        self.replies.iter().map(|reply| reply.to).collect()
    }

    fn hear(&mut self, me: usize) {
        let now = self.now;
        while !self.cut && self.hosts[me].inbox.front().is_some_and(|(due, _)| *due <= now) {
            let host = &mut self.hosts[me];
            let (_, word) = host.inbox.pop_front().unwrap();
            match (&mut host.state, word) {
                (State::Primary(primary), Word::Ack(ack)) => primary.handle_ack(now, &ack).unwrap(),
                (State::Primary(primary), Word::Beat(beat)) => primary.handle_heartbeat(now, &beat).unwrap(),
                (State::Backup(backup), Word::Log(bytes)) => backup.handle_log_bytes(now, bytes).unwrap(),
                (State::Backup(backup), Word::Beat(beat)) => backup.handle_heartbeat(now, &beat).unwrap(),
                _ => {}
            }
        }
    }

    fn think(&mut self, me: usize) {
        let now = self.now;
        let mut said = Vec::new();
        let broken = self.broken;
        let host = &mut self.hosts[me];
        let state = std::mem::replace(&mut host.state, State::Halted);
        host.state = match state {
            State::Primary(mut primary) => {
                said.extend(primary.poll_transmit().map(Word::Log));
                said.extend(primary.poll_heartbeat(now).map(Word::Beat));
                host.gate = primary.gate();
                match primary.handle_timeout(now) {
                    Some(_) => State::Claiming(primary.suspect(now)),
                    None => State::Primary(primary),
                }
            }
            State::Backup(mut backup) => {
                for _ in 0..host.replay_per_step {
                    let Some(record) = backup.poll_deliver() else {
                        break;
                    };
                    host.execute(&record);
                    backup.handle_executed(host.executed, host.position);
                }
                said.extend(backup.poll_ack().map(Word::Ack));
                said.extend(backup.poll_heartbeat(now).map(Word::Beat));
                if broken || backup.handle_timeout(now).is_some() {
                    State::Takeover(Box::new(backup.suspect(now)))
                } else {
                    State::Backup(backup)
                }
            }
            State::Takeover(mut takeover) => {
                for _ in 0..host.replay_per_step {
                    let Some(record) = takeover.poll_deliver() else {
                        takeover.handle_replayed();
                        break;
                    };
                    host.execute(&record);
                }
                State::Takeover(takeover)
            }
            other => other,
        };
        let due = now + ms(1);
        self.hosts[1 - me]
            .inbox
            .extend(said.into_iter().map(|word| (due, word)));
        self.act(me);
    }

    fn act(&mut self, me: usize) {
        let now = self.now;
        let deed = match &mut self.hosts[me].state {
            State::Claiming(claiming) => claiming.poll_deed(now),
            State::Takeover(takeover) => takeover.poll_deed(now),
            _ => None,
        };
        match deed {
            Some(Deed::Claim { expected }) => self.claim(me, expected),
            Some(Deed::Promote { .. }) => {
                self.promoted.push((me, now));
                self.hosts[me].gate = Gate::ALONE;
                self.hosts[me].state = State::Alone;
            }
            Some(Deed::Halt { .. }) => {
                self.hosts[me].gate = Gate::SHUT;
                self.hosts[me].outbox.discard();
                self.hosts[me].state = State::Halted;
            }
            None => {}
        }
    }

    fn claim(&mut self, me: usize, expected: Term) {
        let name = self.hosts[me].name.clone();
        let (term, holder) = self.register.clone();
        let verdict = match holder {
            _ if !self.arbiter_reachable => None,
            Some(holder) if holder == name => Some(Verdict::Granted { term }),
            Some(holder) => Some(Verdict::Refused { term, holder }),
            None => {
                self.register = (expected.next(), Some(name));
                Some(Verdict::Granted {
                    term: expected.next(),
                })
            }
        };
        let now = self.now;
        match (&mut self.hosts[me].state, verdict) {
            (State::Claiming(claiming), Some(verdict)) => claiming.handle_verdict(verdict).unwrap(),
            (State::Claiming(claiming), None) => claiming.handle_claim_failed(now),
            (State::Takeover(takeover), Some(verdict)) => takeover.handle_verdict(verdict).unwrap(),
            (State::Takeover(takeover), None) => takeover.handle_claim_failed(now),
            _ => {}
        }
    }

    /// The device process: it looks at the gate it was last shown, and at the clock.
    fn let_out(&mut self, me: usize) {
        let (now, host) = (self.now, &mut self.hosts[me]);
        let gate = host.gate;
        while let Some(to) = host.outbox.poll_release(&gate, now) {
            self.replies.push(Reply {
                host: me,
                at: now,
                to,
            });
        }
    }
}
