//! What a simulated host stands in: time, chance, the agenda, the wires, the shared disk, and the oracle that watches.
//!
//! Hosts act upon it and never upon each other. It makes no decision of the protocol.

use std::fmt;

use super::agenda::{Actor, Agenda, Boot, Event};
use super::arbiter::Asking;
use super::clock::Moment;
use super::dice::Dice;
use super::disk::SharedDisk;
use super::oracle::Oracle;
use super::plan::Plan;
use super::runs::Runs;
use super::stale::OldWords;
use super::story::Story;
use super::wires::{ConnId, Place, Wires, Word};

/// Everything around the hosts.
#[derive(Debug)]
pub(crate) struct Env {
    /// The world's time.
    pub(crate) now: Moment,
    /// Chance.
    pub(crate) dice: Dice,
    /// What the seed means.
    pub(crate) plan: Plan,
    /// What is to happen.
    pub(crate) agenda: Agenda,
    /// What lies between the hosts.
    pub(crate) wires: Wires,
    /// The disk that all hosts share.
    pub(crate) disk: SharedDisk,
    /// Who watches.
    pub(crate) oracle: Oracle,
    /// What is told.
    pub(crate) story: Story,
    /// What was said once and may be said again.
    pub(crate) old_words: OldWords,
    /// Guests that were stopped in the middle of a run.
    pub(crate) runs: Runs,
    /// Until when backups replay slowly.
    pub(crate) slow_replay_until: Moment,
    /// Until when the network between hosts is slow.
    pub(crate) slow_until: Moment,
}

/// A host's name in a story.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named(pub(crate) usize);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(NAMES[self.0])
    }
}

/// What hosts are called. The first two are started as a pair; the third is a spare, in worlds that have spares.
pub(crate) const NAMES: [&str; 3] = ["a", "b", "c"];
/// How many hosts there are.
pub(crate) const HOSTS: usize = NAMES.len();
/// How many of them are ever started as a pair.
pub(crate) const PAIRED: usize = 2;
/// Where the arbiter is.
pub(crate) const ARBITER: Place = HOSTS;

impl Env {
    /// Wakes a sleeper as soon as a processor is free for it.
    pub(crate) fn ring(&mut self, host: usize, boot: Boot, actor: Actor) {
        let at = self.now.later(self.dice.scaled(self.plan.wake_up));
        self.agenda.wake(at, host, boot, actor);
    }

    /// How long a letter travels now.
    pub(crate) fn travel(&mut self) -> u64 {
        let mut takes = self.dice.between(self.plan.delay);
        if self.dice.chance(self.plan.losses) {
            takes += self.dice.scaled(self.plan.fault);
        }
        if self.now < self.slow_until {
            takes += self.dice.scaled(self.plan.fault) / 8;
        }
        takes
    }

    /// Sends a word to the other end of a connection.
    pub(crate) fn send(&mut self, conn: ConnId, from: Place, word: Word) {
        let due = self.now.later(self.travel());
        self.old_words.note(&word);
        if let Some((at, arrival)) = self.wires.send(conn, from, word, due) {
            self.agenda.note(at, Event::Arrival(arrival));
        }
    }

    /// Puts a question on its way to the arbiter.
    pub(crate) fn ask_arbiter(&mut self, asking: Asking) {
        let due = self.now.later(self.travel());
        self.agenda.note(due, Event::Asked(Box::new(asking)));
    }

    /// Says what a host did, if somebody listens.
    pub(crate) fn tell(&mut self, host: usize, what: impl FnOnce() -> String) {
        self.story.tell(self.now, &Named(host), what);
    }

    /// Something is wrong with what a host does.
    pub(crate) fn accuse(&mut self, invariant: &'static str, host: usize, sentence: &dyn fmt::Display) {
        self.oracle
            .accuse(self.now, invariant, format!("Host {}: {sentence}", NAMES[host]));
    }
}
