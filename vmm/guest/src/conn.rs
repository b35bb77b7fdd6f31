//! One client: its unfinished request, and its replies in order, each held until what it tells is durable. The server
//! moves the bytes between it and a socket; it knows neither sockets nor the disk.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::command::{Outcome, execute};
use crate::db::{Db, Session};
use crate::limits::{CONNECTION_ALLOWANCE, MEMORY_WAIT_MAX, REPLIES_HIGH};
use crate::reply::Reply;
use crate::resp::{Parser, Spare, Step};
use crate::units::{Group, Time};

/// Why a connection executes nothing more for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// The client must send more.
    Hungry,
    /// The log must get ready.
    Log,
    /// The client must read its replies.
    Full,
    /// Others must let go of theirs: a large command or reply finds no memory.
    Memory,
    /// Its command takes more rounds.
    Work,
    /// The connection is ending.
    Closing,
}

/// Replies side by side that wait for the same thing.
#[derive(Clone, Copy, Debug)]
struct Held {
    bytes: usize,
    replies: usize,
    needs: Group,
}

/// A client.
#[derive(Debug)]
pub struct Conn {
    parser: Parser,
    session: Session,
    /// Since when it waits for memory.
    starving: Option<Time>,
    /// Replies; those before `sent` are gone.
    out: Vec<u8>,
    sent: usize,
    /// How many bytes after `sent` may leave.
    released: usize,
    held: VecDeque<Held>,
}

impl Conn {
    /// A client that has said nothing.
    pub fn new(id: u64) -> Self {
        Conn {
            parser: Parser::new(),
            session: Session {
                id,
                ..Session::default()
            },
            starving: None,
            out: Vec::new(),
            sent: 0,
            released: 0,
            held: VecDeque::new(),
        }
    }

    /// How many bytes may be fed now.
    pub fn room(&self) -> usize {
        if self.session.closing || self.is_full() {
            0
        } else {
            self.parser.room()
        }
    }

    /// Takes bytes from the client, at most as many as there is room for.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.parser.feed(bytes);
    }

    /// Executes all that can be executed. `spare` is the memory left for large commands and replies of all clients.
    pub fn execute(&mut self, db: &mut Db, spare: usize) -> Stall {
        let gives_up = self
            .starving
            .is_some_and(|since| db.now.since(since) > MEMORY_WAIT_MAX);
        let spare = Spare {
            now: spare,
            ever: if gives_up { spare } else { db.memory.buffers_max },
        };
        let stall = self.execute_with(db, spare);
        self.starving = match stall {
            Stall::Memory => Some(self.starving.unwrap_or(db.now)),
            _ => None,
        };
        stall
    }

    fn execute_with(&mut self, db: &mut Db, spare: Spare) -> Stall {
        loop {
            if self.session.closing || db.shutdown.is_some() {
                return Stall::Closing;
            }
            if self.is_full() {
                return Stall::Full;
            }
            match self.parser.step(spare) {
                Ok(Step::Hungry) => return Stall::Hungry,
                Ok(Step::Starved) => return Stall::Memory,
                Ok(Step::Command) => {
                    let before = self.out.len();
                    let arguments = self.parser.arguments();
                    // The command has taken its part already.
                    let spare = spare.without(self.parser.held());
                    match execute(db, &mut self.session, arguments, &mut self.out, spare) {
                        Outcome::Later => return Stall::Log,
                        Outcome::NoMemory => return Stall::Memory,
                        Outcome::Working => return Stall::Work,
                        Outcome::Done(needs) => self.hold(before, needs),
                    }
                }
                Ok(Step::Oversized) => {
                    self.say(format_args!(
                        "OOM command not allowed: it is larger than the memory left for it"
                    ));
                }
                Err(error) => {
                    self.say(format_args!("ERR {error}"));
                    self.session.closing = true;
                    return Stall::Closing;
                }
            }
            self.parser.consume();
        }
    }

    /// Since when it waits for memory.
    pub fn starving(&self) -> Option<Time> {
        self.starving
    }

    /// Lets go of the replies that are durable.
    pub fn release(&mut self, durable: Group) {
        while let Some(held) = self.held.front().filter(|held| held.needs <= durable) {
            self.released += held.bytes;
            self.held.pop_front();
        }
    }

    /// The log failed: what was not durable never will be, so each reply that tells of it becomes an error.
    pub fn fail(&mut self, durable: Group) {
        self.release(durable);
        let replies: usize = self.held.drain(..).map(|held| held.replies).sum();
        self.out.truncate(self.sent + self.released);
        (0..replies).for_each(|_| self.say(format_args!("ERR disk failed: this was not made durable")));
    }

    /// Replies that may leave now.
    pub fn sendable(&self) -> &[u8] {
        &self.out[self.sent..self.sent + self.released]
    }

    /// So many bytes of them have left.
    pub fn handle_sent(&mut self, bytes: usize) {
        self.sent += bytes;
        self.released -= bytes;
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
            // A long reply's memory is not kept for the next.
            if self.out.capacity() > REPLIES_HIGH {
                self.out = Vec::new();
            }
        } else if self.sent > REPLIES_HIGH {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// The client will send nothing more.
    pub fn handle_end(&mut self) {
        self.session.closing = true;
    }

    /// Whether everything is said and the end may come.
    pub fn is_finished(&self) -> bool {
        self.session.closing && self.is_quiet()
    }

    /// Whether every reply has left.
    pub fn is_quiet(&self) -> bool {
        self.sent == self.out.len()
    }

    /// Memory that counts against the share of large commands and replies.
    pub fn excess(&self) -> usize {
        (self.parser.held() + self.out.capacity()).saturating_sub(CONNECTION_ALLOWANCE)
    }

    /// Whether the client must read its replies before more is executed.
    pub fn is_full(&self) -> bool {
        self.out.len() - self.sent >= REPLIES_HIGH
    }

    /// Writes an error that depends on nothing.
    fn say(&mut self, text: core::fmt::Arguments<'_>) {
        let before = self.out.len();
        let mut reply = Reply::new(&mut self.out, REPLIES_HIGH);
        reply.error(text);
        self.hold(before, Group::ZERO);
    }

    /// Holds what was written since `before`. Replies leave in order, so a group that the one in front waits for holds
    /// this one too.
    fn hold(&mut self, before: usize, needs: Group) {
        let bytes = self.out.len() - before;
        if bytes == 0 {
            return;
        }
        match self.held.back_mut() {
            Some(last) if last.needs >= needs => {
                last.bytes += bytes;
                last.replies += 1;
            }
            _ => self.held.push_back(Held {
                bytes,
                replies: 1,
                needs,
            }),
        }
    }
}

#[cfg(test)]
mod tests;
