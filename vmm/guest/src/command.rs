//! Commands: which there are, when they may run, and what they share. A connection calls [`execute`] with one parsed
//! command; the handlers live in `commands`. Changes go through [`Call::change`] and so into the log; a reply says which
//! group of changes must be durable before it may leave.

use alloc::vec::Vec;
use core::fmt;

use crate::arguments::Arguments;
use crate::commands;
use crate::db::{Db, Session};
use crate::limits::{CONNECTION_ALLOWANCE, NUMBER_MAX, REPLIES_HIGH, REPLY_MAX};
use crate::log::Readiness;
use crate::reply::Reply;
use crate::resp::Spare;
use crate::store::op::{OP_BYTES, Op};
use crate::store::{Entry, Growth, Store};
use crate::units::{Group, Time};

/// Why a command is refused. The texts are Redis's, as far as Redis has the case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Syntax,
    NotAnInteger,
    Overflow,
    TooLong,
    LongKey,
    LongReply,
    InvalidExpire,
    OutOfMemory,
    DiskFull,
    DiskFailed,
    Arity,
    UnknownSubcommand,
    Other(&'static str),
}

/// What a command does to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    Reads,
    /// Changes it, without taking more memory.
    Shrinks,
    /// Changes it, and may take more memory.
    Grows,
}

/// A command that can be called.
pub(crate) struct Spec {
    /// Its name in small letters.
    pub(crate) name: &'static str,
    /// How many arguments, the name included; if negative, at least so many.
    pub(crate) arity: i32,
    pub(crate) effect: Effect,
    pub(crate) run: fn(&mut Call<'_>) -> Result<(), Refusal>,
}

/// A command being executed.
pub(crate) struct Call<'a> {
    pub(crate) db: &'a mut Db,
    pub(crate) session: &'a mut Session,
    pub(crate) arguments: Arguments<'a>,
    pub(crate) reply: Reply<'a>,
    pub(crate) needs: Group,
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The reply was written; it may leave when this group is durable.
    Done(Group),
    /// Nothing happened; try again when the log is ready.
    Later,
    /// Nothing happened; try again when other connections have been read and hold less memory.
    NoMemory,
    /// It is at work, and takes more rounds; call it again in the next one.
    Working,
}

/// Executes a command. `spare` is how much memory a long reply may take of what all connections share.
pub fn execute(
    db: &mut Db,
    session: &mut Session,
    arguments: Arguments<'_>,
    out: &mut Vec<u8>,
    spare: Spare,
) -> Outcome {
    let most = spare.now.clamp(CONNECTION_ALLOWANCE - REPLIES_HIGH, REPLY_MAX);
    let can_grow = most < REPLY_MAX.min(spare.ever);
    let reply = Reply::new(out, most);
    let mut call = Call {
        db,
        session,
        arguments,
        reply,
        needs: Group::ZERO,
    };
    let Some(spec) = find(arguments.at(0)) else {
        call.refuse_unknown();
        return Outcome::Done(Group::ZERO);
    };
    match admit(call.db, spec, arguments) {
        Ok(true) => (),
        Ok(false) => return Outcome::Later,
        Err(refusal) => {
            call.refuse(refusal);
            return Outcome::Done(Group::ZERO);
        }
    }
    let result = (spec.run)(&mut call);
    if call.session.work.is_some() {
        return Outcome::Working;
    }
    if call.reply.is_too_long() {
        // Commands that change anything write what is long first, and stop there.
        if can_grow {
            call.reply.retract();
            return Outcome::NoMemory;
        }
        call.refuse(Refusal::LongReply);
    } else if let Err(refusal) = result {
        call.refuse(refusal);
    }
    call.db.executed += 1;
    Outcome::Done(call.needs)
}

/// Finds a command by its name in any case.
pub(crate) fn find(name: &[u8]) -> Option<&'static Spec> {
    commands::all().find(|spec| spec.name.as_bytes().eq_ignore_ascii_case(name))
}

/// Whether a command may run now: false for later.
fn admit(db: &mut Db, spec: &Spec, arguments: Arguments<'_>) -> Result<bool, Refusal> {
    let count = arguments.len() as i32;
    if count != spec.arity && (spec.arity >= 0 || count < -spec.arity) {
        return Err(Refusal::Arity);
    }
    if spec.effect == Effect::Reads {
        return Ok(true);
    }
    match db.log.readiness() {
        Readiness::Ready => (),
        Readiness::Later => return Ok(false),
        Readiness::Failed => return Err(Refusal::DiskFailed),
    }
    // A number that the command makes may take more than the arguments that it is made from.
    let bytes = arguments.total() + NUMBER_MAX;
    if spec.effect == Effect::Grows {
        // At worst every second argument is a new key.
        let entries = arguments.len() / 2;
        if !db.has_memory(Growth::of_new(bytes, entries)) {
            return Err(Refusal::OutOfMemory);
        }
        if !db
            .log
            .has_room(db.store.encoded() + (bytes + entries * OP_BYTES) as u64)
        {
            return Err(Refusal::DiskFull);
        }
    }
    // At worst every argument is a key and a change of its own.
    match db.reserve_log(bytes + arguments.len() * OP_BYTES) {
        true => Ok(true),
        false => Err(Refusal::OutOfMemory),
    }
}

impl<'a> Call<'a> {
    /// Makes a change, and makes the reply depend on it.
    pub(crate) fn change(&mut self, op: &Op<'_>) {
        self.needs = self.db.change(op);
    }

    /// Makes the reply depend on every change so far.
    pub(crate) fn depend_on_all(&mut self) {
        self.needs = self.needs.max(self.db.last_change);
    }

    /// An argument.
    pub(crate) fn at(&self, index: usize) -> &'a [u8] {
        self.arguments.at(index)
    }

    /// Whether an argument is this word, in any case.
    pub(crate) fn is(&self, index: usize, word: &str) -> bool {
        self.at(index).eq_ignore_ascii_case(word.as_bytes())
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.reply.retract();
        // Redis says the name in small letters here.
        let name = self.at(0).to_ascii_lowercase();
        let name = Lossy(&name);
        match refusal {
            Refusal::Arity => {
                self.reply
                    .error(format_args!("ERR wrong number of arguments for '{name}' command"));
            }
            Refusal::InvalidExpire => self
                .reply
                .error(format_args!("ERR invalid expire time in '{name}' command")),
            Refusal::UnknownSubcommand => {
                let sub = Lossy(self.arguments.at(1));
                self.reply
                    .error(format_args!("ERR unknown subcommand '{sub}'. Try {name} HELP."));
            }
            refusal => self.reply.error(format_args!("{}", refusal.text())),
        }
    }

    fn refuse_unknown(&mut self) {
        let name = Lossy(self.arguments.at(0));
        let rest = Beginning(self.arguments);
        self.reply.error(format_args!(
            "ERR unknown command '{name}', with args beginning with: {rest}"
        ));
    }
}

/// An entry, if it is there. Whoever learns of it, or of its absence, depends on the change that made it so.
pub(crate) fn look<'s>(store: &'s Store, key: &[u8], now: Time, needs: &mut Group) -> Option<&'s Entry> {
    let entry = store.get(key, now);
    *needs = (*needs).max(entry.map_or(store.gone(), Entry::group));
    entry
}

impl Refusal {
    fn text(self) -> &'static str {
        match self {
            Refusal::Syntax => "ERR syntax error",
            Refusal::NotAnInteger => "ERR value is not an integer or out of range",
            Refusal::Overflow => "ERR increment or decrement would overflow",
            Refusal::TooLong => "ERR string exceeds maximum allowed size (proto-max-bulk-len)",
            Refusal::LongReply => "OOM the reply is longer than the memory left for it",
            Refusal::LongKey => "ERR key exceeds maximum allowed size",
            Refusal::OutOfMemory => "OOM command not allowed when used memory > 'maxmemory'.",
            Refusal::DiskFull => "ERR disk full: the log has no room for more data",
            Refusal::DiskFailed => "ERR disk failed: no write can be made durable any more",
            Refusal::InvalidExpire => "ERR invalid expire time",
            Refusal::Arity => "ERR wrong number of arguments",
            Refusal::UnknownSubcommand => "ERR unknown subcommand",
            Refusal::Other(text) => text,
        }
    }
}

/// Bytes as text, as far as they are some; at most 128 of them, as Redis does it.
pub(crate) struct Lossy<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Lossy<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = &self.0[..self.0.len().min(128)];
        bytes
            .utf8_chunks()
            .try_for_each(|chunk| out.write_str(chunk.valid()))
    }
}

/// The arguments after the name, quoted, until there are 128 bytes.
struct Beginning<'a>(Arguments<'a>);

impl fmt::Display for Beginning<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left: usize = 128;
        for argument in self.0.from(1) {
            write!(out, "'{}' ", Lossy(&argument[..argument.len().min(left)]))?;
            left = left.saturating_sub(argument.len() + 3);
            if left == 0 {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
