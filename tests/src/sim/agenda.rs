//! What is to happen in a simulated world, and when: the one place where its time moves.
//!
//! Things of the same moment happen in the order in which they were noted, so a seed has one story. An alarm wakes a
//! thread or process of a host; of several alarms for one sleeper only the earliest rings.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use bytes::Bytes;

use super::arbiter::{Answered, Asking};
use super::clock::Moment;
use super::device::Departure;
use super::guest::Reply;
use super::wires::Arrival;

/// What runs on a host by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Actor {
    /// The thread that owns the connection.
    Driver,
    /// The thread that runs the guest.
    Vcpu,
    /// The process of the network card.
    Net,
    /// The process of the disk.
    Disk,
}

impl Actor {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Driver, Self::Vcpu, Self::Net, Self::Disk];
}

/// Which start of a host's process, from 1 on.
pub(crate) type Boot = u32;

/// What happens.
#[derive(Debug)]
pub(crate) enum Event {
    /// A sleeper's alarm rings.
    Alarm {
        /// On which host.
        host: usize,
        /// Of which start of its process.
        boot: Boot,
        /// Who.
        actor: Actor,
    },
    /// A word comes to a host.
    Arrival(Arrival),
    /// A frame of a client comes to the tap of a host.
    Frame {
        /// Which host.
        host: usize,
        /// The frame.
        bytes: Bytes,
    },
    /// A client hears a reply.
    Told(Reply),
    /// A client acts.
    Client(usize),
    /// An output is out.
    Departs(Box<Departure>),
    /// A question reaches the arbiter.
    Asked(Box<Asking>),
    /// The arbiter's answer comes back.
    Answered(Box<Answered>),
    /// Nobody waits for an answer any longer.
    GivesUp {
        /// On which host.
        host: usize,
        /// Of which start of its process.
        boot: Boot,
        /// Which attempt.
        attempt: u64,
    },
    /// Something goes wrong.
    Fault,
    /// What was held back by a cut may pass.
    Heal,
    /// The operator looks at his hosts.
    Operator,
    /// From here on nothing new goes wrong.
    Calm,
    /// By now all must be well again.
    Judgement,
}

#[derive(Debug)]
struct Entry {
    at: Moment,
    order: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// Everything that is to happen.
#[derive(Debug)]
pub(crate) struct Agenda {
    entries: BinaryHeap<Reverse<Entry>>,
    noted: u64,
    /// The moment of the alarm that counts, for each host and sleeper.
    alarms: Vec<[Moment; 4]>,
}

impl Agenda {
    /// Nothing is to happen to so many hosts.
    pub(crate) fn of(hosts: usize) -> Self {
        Self {
            entries: BinaryHeap::new(),
            noted: 0,
            alarms: vec![[Moment::NEVER; 4]; hosts],
        }
    }

    /// Notes that something is to happen; at the end of time it never does.
    pub(crate) fn note(&mut self, at: Moment, event: Event) {
        if at == Moment::NEVER {
            return;
        }
        self.noted += 1;
        self.entries.push(Reverse(Entry {
            at,
            order: self.noted,
            event,
        }));
    }

    /// Wakes a sleeper then, if no earlier alarm does.
    pub(crate) fn wake(&mut self, at: Moment, host: usize, boot: Boot, actor: Actor) {
        let alarm = &mut self.alarms[host][actor as usize];
        if at < *alarm {
            *alarm = at;
            self.note(at, Event::Alarm { host, boot, actor });
        }
    }

    /// Is this the alarm that counts? It rings once.
    pub(crate) fn rings(&mut self, now: Moment, host: usize, actor: Actor) -> bool {
        let alarm = &mut self.alarms[host][actor as usize];
        let counts = *alarm == now;
        if counts {
            *alarm = Moment::NEVER;
        }
        counts
    }

    /// Nobody on that host is to be woken any more.
    pub(crate) fn silence(&mut self, host: usize) {
        self.alarms[host] = [Moment::NEVER; 4];
    }

    /// What happens next, and when.
    pub(crate) fn next(&mut self) -> Option<(Moment, Event)> {
        self.entries.pop().map(|Reverse(entry)| (entry.at, entry.event))
    }
}
