//! What lies between hosts: connections of ordered streams, as QUIC gives them, over links that are slow, lossy, or cut
//! in one direction or both.
//!
//! A stream neither loses nor reorders words; a loss delays a word and all behind it on its stream. A cut holds them
//! back until it heals. Nobody is told that a link is cut. Streams of one connection overtake each other, and so does
//! the news that the connection was closed.

use std::collections::VecDeque;

use bytes::Bytes;
use lockstep_protocol::ids::{LogOffset, Position, Term};
use lockstep_protocol::message::{Ack, Heartbeat, Hello, Message};
use lockstep_protocol::session::Parting;

use super::clock::Moment;
use super::guest::Guest;

/// A host, or the arbiter behind them.
pub(crate) type Place = usize;

/// Which connection, from 1 on.
pub(crate) type ConnId = u32;

/// Everything that passes between two hosts.
#[derive(Clone, Debug)]
pub(crate) enum Word {
    /// The first word of either side.
    Hello(Box<Hello>),
    /// The primary agrees: its streams are open.
    Agreed,
    /// The speaker does not want this session.
    Refused,
    /// The speaker leaves for good.
    Goodbye(Parting),
    /// Bytes of the log.
    Log(Bytes),
    /// Bytes of the log were read: as many more may be sent.
    Read(usize),
    /// How far the log is held.
    Ack(Ack),
    /// What a backup has to say that has diverged.
    Sick(Message),
    /// The speaker lives.
    Beat(Heartbeat),
    /// The connection was closed.
    Closed,
    /// On the connection over which a VM is copied to a spare.
    State(StateWord),
}

/// What a spare and a host that runs a VM alone say to each other. Each attempt of a spare has a number.
#[derive(Clone, Debug)]
pub(crate) enum StateWord {
    /// A spare would take the VM in.
    Knock(u32),
    /// A round of pages.
    Round(u32),
    /// The round is in place.
    InPlace(u32),
    /// The machine, the last piece.
    Machine(Box<Copied>),
    /// The spare holds all of it and listens: the log begins at that offset and position.
    Held(u32, LogOffset, Position),
}

/// A machine that stood still.
#[derive(Clone, Debug)]
pub(crate) struct Copied {
    /// For which attempt of the spare.
    pub(crate) attempt: u32,
    /// The term that the pair will be of.
    pub(crate) term: Term,
    /// Where the log will begin.
    pub(crate) start: LogOffset,
    /// The machine with its memory.
    pub(crate) guest: Guest,
}

/// How many streams a connection has in each direction.
const STREAMS: usize = 7;

impl Word {
    /// Words of one stream stay in order.
    fn stream(&self) -> u8 {
        match self {
            Self::Hello(_) | Self::Agreed | Self::Refused | Self::Goodbye(_) => 0,
            Self::Log(_) => 1,
            Self::Ack(_) | Self::Sick(_) => 2,
            Self::Beat(_) => 3,
            Self::Read(_) => 4,
            Self::Closed => 5,
            Self::State(_) => 6,
        }
    }
}

/// A word of some stream has come to the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// On which connection.
    pub(crate) conn: ConnId,
    /// Who sent it.
    pub(crate) from: Place,
    /// To whom.
    pub(crate) to: Place,
    stream: u8,
}

/// Words under way on one connection.
#[derive(Debug)]
struct Connection {
    id: ConnId,
    ends: [Place; 2],
    /// When something was sent on it last.
    used: u64,
    under_way: [[VecDeque<Word>; STREAMS]; 2],
    /// When the newest word of each stream arrives.
    last: [[Moment; STREAMS]; 2],
}

impl Connection {
    fn direction(&self, from: Place) -> usize {
        usize::from(self.ends[1] == from)
    }
}

/// So many connections are remembered; on those that nobody used for longest all words have long been lost.
const REMEMBERED: usize = 12;

/// All links and connections.
#[derive(Debug)]
pub(crate) struct Wires {
    places: usize,
    /// Until when letters from one place to another are held back.
    cut: Vec<Moment>,
    held_back: Vec<Arrival>,
    connections: Vec<Connection>,
    newest: ConnId,
    sent: u64,
}

impl Wires {
    /// Links between all of so many places.
    pub(crate) fn between(places: usize) -> Self {
        Self {
            places,
            cut: vec![Moment::default(); places * places],
            held_back: Vec::new(),
            connections: Vec::new(),
            newest: 0,
            sent: 0,
        }
    }

    /// A new connection.
    pub(crate) fn connect(&mut self, from: Place, to: Place) -> ConnId {
        self.newest += 1;
        if self.connections.len() == REMEMBERED {
            let oldest = (0..REMEMBERED).min_by_key(|index| self.connections[*index].used);
            oldest.map(|index| self.connections.remove(index));
        }
        self.connections.push(Connection {
            id: self.newest,
            used: self.sent,
            ends: [from, to],
            under_way: Default::default(),
            last: Default::default(),
        });
        self.newest
    }

    /// Sends a word that would arrive at `due` if nothing were before it on its stream. Says what arrives when.
    pub(crate) fn send(
        &mut self,
        conn: ConnId,
        from: Place,
        word: Word,
        due: Moment,
    ) -> Option<(Moment, Arrival)> {
        let connection = self.connections.iter_mut().rfind(|known| known.id == conn)?;
        self.sent += 1;
        connection.used = self.sent;
        let (direction, stream) = (connection.direction(from), word.stream());
        let last = &mut connection.last[direction][usize::from(stream)];
        *last = due.max(last.later(1));
        connection.under_way[direction][usize::from(stream)].push_back(word);
        let to = connection.ends[1 - direction];
        let arrival = Arrival {
            conn,
            from,
            to,
            stream,
        };
        Some((*last, arrival))
    }

    /// Something has arrived: the oldest word of its stream, unless the link is cut and holds it back.
    pub(crate) fn arrive(&mut self, now: Moment, arrival: Arrival) -> Option<Word> {
        if self.is_cut(now, arrival.from, arrival.to) {
            self.held_back.push(arrival);
            return None;
        }
        let connection = self
            .connections
            .iter_mut()
            .rfind(|known| known.id == arrival.conn)?;
        let direction = connection.direction(arrival.from);
        connection.under_way[direction][usize::from(arrival.stream)].pop_front()
    }

    /// Does nothing pass from one place to the other now?
    pub(crate) fn is_cut(&self, now: Moment, from: Place, to: Place) -> bool {
        now < self.cut[from * self.places + to]
    }

    /// Until when nothing passes from one place to the other.
    pub(crate) fn cut_until(&self, from: Place, to: Place) -> Moment {
        self.cut[from * self.places + to]
    }

    /// Nothing passes from one place to the other until then.
    pub(crate) fn cut(&mut self, from: Place, to: Place, until: Moment) {
        let cut = &mut self.cut[from * self.places + to];
        *cut = until.max(*cut);
    }

    /// All links are whole again.
    pub(crate) fn heal_all(&mut self) {
        self.cut.fill(Moment::default());
    }

    /// What was held back and is not any more; it arrives anew.
    pub(crate) fn release(&mut self, now: Moment) -> Vec<Arrival> {
        let (places, cut) = (self.places, &self.cut);
        let whole = |arrival: &mut Arrival| now >= cut[arrival.from * places + arrival.to];
        self.held_back.extract_if(.., whole).collect()
    }
}
