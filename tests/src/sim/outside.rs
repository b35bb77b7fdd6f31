//! The outside: clients that ask, ask again until they are answered, and remember what they were told.
//!
//! They reach every host, as frames on a bridge do, and the network to them loses frames. What they judge is order in
//! time: who asks after somebody was answered is executed after him.

use bytes::Bytes;

use super::agenda::Event;
use super::chain::Count;
use super::clock::Moment;
use super::env::{Env, HOSTS};
use super::guest::{Asked, CLIENTS, Reply};

/// In how many of thousand cases a frame is lost.
const LOSSES: u64 = 10;

/// One client.
#[derive(Clone, Copy, Debug, Default)]
struct Client {
    seq: u32,
    /// What it wants, while it waits for the answer.
    waits: Option<Wish>,
    /// When it was last answered.
    answered: Moment,
}

/// What a client wants.
#[derive(Clone, Copy, Debug)]
struct Wish {
    kept: bool,
    end: bool,
    padding: usize,
    /// In which life of the VM it was first asked for, and how many requests had been answered by then.
    life: u64,
    after: Count,
}

/// All clients, and what lies between them and the hosts.
#[derive(Debug, Default)]
pub(crate) struct Outside {
    clients: [Client; CLIENTS],
    /// In the life of the VM, the newest state that any client was told of.
    newest: (u64, Count),
    cut_until: [Moment; HOSTS],
}

impl Outside {
    /// Every client begins to think.
    pub(crate) fn begin(env: &mut Env) -> Self {
        for client in 0..CLIENTS {
            let at = env.now.later(env.dice.between(env.plan.think));
            env.agenda.note(at, Event::Client(client));
        }
        Self::default()
    }

    /// A client asks, for the first time or again.
    pub(crate) fn act(&mut self, env: &mut Env, index: usize, calm: bool) {
        let life = env.oracle.history.lives();
        let client = &mut self.clients[index];
        let wish = match client.waits {
            Some(wish) => wish,
            None => {
                client.seq += 1;
                let (known, count) = self.newest;
                Wish {
                    kept: env.dice.chance(env.plan.kept),
                    end: !calm && env.dice.chance(env.plan.power_off),
                    padding: env
                        .dice
                        .between((env.plan.padding as u64 / 2, env.plan.padding as u64))
                        as usize,
                    life,
                    after: if known == life { count } else { 0 },
                }
            }
        };
        client.waits = Some(wish);
        let frame = Asked::frame(
            index as u8,
            client.seq,
            wish.kept,
            wish.end && !calm,
            wish.padding,
        );
        let bytes = Bytes::from(frame);
        for host in 0..env.plan.hosts() {
            if env.now >= self.cut_until[host] && !env.dice.chance(LOSSES) {
                let at = env.now.later(env.dice.between(env.plan.delay));
                let bytes = bytes.clone();
                env.agenda.note(at, Event::Frame { host, bytes });
            }
        }
        let again = env.now.later(env.plan.think.1 + env.dice.between(env.plan.think));
        env.agenda.note(again, Event::Client(index));
    }

    /// A reply has left a host.
    pub(crate) fn send(&mut self, env: &mut Env, host: usize, reply: Reply) {
        if env.now >= self.cut_until[host] && !env.dice.chance(LOSSES) {
            let at = env.now.later(env.dice.between(env.plan.delay));
            env.agenda.note(at, Event::Told(reply));
        }
    }

    /// A client hears a reply. An error is a sentence.
    pub(crate) fn hear(&mut self, env: &Env, reply: Reply) -> Result<(), String> {
        let client = &mut self.clients[usize::from(reply.client)];
        let Some(wish) = client.waits.filter(|_| client.seq == reply.seq) else {
            return Ok(());
        };
        client.waits = None;
        client.answered = env.now;
        let life = env.oracle.history.lives();
        let (known, count) = self.newest;
        let newest = if known == life { count } else { 0 };
        self.newest = (life, newest.max(reply.state.count));
        if wish.life == life && reply.state.count <= wish.after {
            return Err(format!(
                "A client asked when {} requests had been answered, and is told that it was number {}",
                wish.after, reply.state.count
            ));
        }
        Ok(())
    }

    /// No frames pass between a host and the clients until then.
    pub(crate) fn cut(&mut self, host: usize, until: Moment) {
        self.cut_until[host] = until;
    }

    /// All is well between the clients and the hosts.
    pub(crate) fn heal(&mut self) {
        self.cut_until = [Moment::default(); HOSTS];
    }

    /// Was every client answered since then?
    pub(crate) fn were_answered_since(&self, moment: Moment) -> bool {
        self.clients.iter().all(|client| client.answered > moment)
    }
}
