//! The RESP2 request parser: bytes in, at any split, commands out. A connection owns one. It never blocks, never panics
//! on any bytes, and holds at most one command and a bounded read-ahead; a command that is too large is read to its end
//! and thrown away, so that the connection can go on.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use crate::arguments::{Arguments, number};
use crate::inline;
use crate::limits::{ARGUMENTS_MAX, COMMAND_MAX, LINE_MAX, READ_AHEAD, VALUE_MAX};

/// What ends a connection, after this has been said to it. The texts are Redis's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// The count of arguments is no number or too large.
    MultibulkLength,
    /// An argument's length is no number or too large.
    BulkLength,
    /// Something else stands where an argument's length must be.
    ExpectedBulk(u8),
    /// A count without an end.
    LongMultibulkLine,
    /// A length without an end.
    LongBulkLine,
    /// An inline command without an end.
    LongInline,
    /// An inline command with an open quote.
    UnbalancedQuotes,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Protocol error: ")?;
        match self {
            ProtocolError::MultibulkLength => out.write_str("invalid multibulk length"),
            ProtocolError::BulkLength => out.write_str("invalid bulk length"),
            ProtocolError::ExpectedBulk(byte) => {
                write!(out, "expected '$', got '{}'", char::from(*byte).escape_default())
            }
            ProtocolError::LongMultibulkLine => out.write_str("too big mbulk count string"),
            ProtocolError::LongBulkLine => out.write_str("too big bulk count string"),
            ProtocolError::LongInline => out.write_str("too big inline request"),
            ProtocolError::UnbalancedQuotes => out.write_str("unbalanced quotes in request"),
        }
    }
}

/// What the parser has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes are needed.
    Hungry,
    /// A whole command: see [`Parser::arguments`], then [`Parser::consume`] it.
    Command,
    /// An argument finds no memory now, but will when others have let go of theirs.
    Starved,
    /// A whole command was too large, or there was no memory for it; it is gone. [`Parser::consume`] it.
    Oversized,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first byte of a command.
    Start,
    /// Before the length of the next argument.
    Length { left: usize },
    /// Inside an argument, of which so many bytes and a line end are still to come.
    Bulk { left: usize, missing: usize },
    /// A command lies ready.
    Ready,
}

/// Memory for large commands and replies, which all connections share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spare {
    /// What is free now.
    pub now: usize,
    /// What is worth waiting for.
    pub ever: usize,
}

impl Spare {
    /// The same, when so much of it is in use.
    #[must_use]
    pub fn without(self, bytes: usize) -> Self {
        Spare {
            now: self.now.saturating_sub(bytes),
            ever: self.ever.saturating_sub(bytes),
        }
    }
}

/// A parser, and the bytes it was fed.
#[derive(Debug)]
pub struct Parser {
    buffer: Vec<u8>,
    /// Where the command begins that is being parsed.
    start: usize,
    /// How far into that command the parser is.
    at: usize,
    /// How much of the buffer was searched for a line end already, beyond `at`.
    searched: usize,
    state: State,
    arguments: Vec<Range<u32>>,
    /// The unquoted arguments of an inline command.
    inline: Vec<u8>,
    is_inline: bool,
    oversized: bool,
    total: usize,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// A parser that has seen nothing.
    pub fn new() -> Self {
        Parser {
            buffer: Vec::new(),
            start: 0,
            at: 0,
            searched: 0,
            state: State::Start,
            arguments: Vec::new(),
            inline: Vec::new(),
            is_inline: false,
            oversized: false,
            total: 0,
        }
    }

    /// How many bytes may be fed now.
    pub fn room(&self) -> usize {
        let missing = match self.state {
            State::Bulk { missing, .. } if !self.oversized => missing,
            _ => 0,
        };
        (READ_AHEAD + self.at + missing.max(self.searched)).saturating_sub(self.buffer.len() - self.start)
    }

    /// Bytes of memory held.
    pub fn held(&self) -> usize {
        self.buffer.capacity() + self.inline.capacity() + self.arguments.capacity() * size_of::<Range<u32>>()
    }

    /// Takes bytes, at most as many as there is room for.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.start > 0 && self.buffer.len() + bytes.len() > self.buffer.capacity() {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Goes on parsing. `spare` is the memory for a large command.
    pub fn step(&mut self, spare: Spare) -> Result<Step, ProtocolError> {
        loop {
            let progress = match self.state {
                State::Start => self.start_command()?,
                State::Length { left: 0 } => {
                    self.state = State::Ready;
                    true
                }
                State::Length { left } => match self.read_length(left, spare)? {
                    Some(progress) => progress,
                    None => return Ok(Step::Starved),
                },
                State::Bulk { left, missing } => self.read_bulk(left, missing),
                State::Ready if self.oversized => return Ok(Step::Oversized),
                State::Ready => return Ok(Step::Command),
            };
            if !progress {
                return Ok(Step::Hungry);
            }
        }
    }

    /// The command that lies ready.
    pub fn arguments(&self) -> Arguments<'_> {
        let bytes = if self.is_inline {
            &self.inline[..]
        } else {
            &self.buffer[self.start..]
        };
        Arguments::new(bytes, &self.arguments)
    }

    /// Forgets the command that lies ready.
    pub fn consume(&mut self) {
        self.start += self.at;
        self.at = 0;
        self.searched = 0;
        self.state = State::Start;
        self.arguments.clear();
        self.is_inline = false;
        self.oversized = false;
        self.total = 0;
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
        // A large command's memory is not kept for the next.
        if self.buffer.capacity() > 2 * READ_AHEAD && self.buffer.len() - self.start <= READ_AHEAD {
            self.buffer = self.buffer.split_off(self.start);
            self.start = 0;
        }
        if self.arguments.capacity() > 1024 {
            self.arguments = Vec::new();
        }
        if self.inline.capacity() > 1024 {
            self.inline = Vec::new();
        }
    }

    fn start_command(&mut self) -> Result<bool, ProtocolError> {
        let Some(&first) = self.buffer.get(self.start) else {
            return Ok(false);
        };
        if first != b'*' {
            return self.read_inline();
        }
        let Some(line) = self.line(ProtocolError::LongMultibulkLine)? else {
            return Ok(false);
        };
        let count = number(&self.buffer[line.start + 1..line.end]).ok_or(ProtocolError::MultibulkLength)?;
        if count > ARGUMENTS_MAX as i64 {
            return Err(ProtocolError::MultibulkLength);
        }
        if count <= 0 {
            // Redis passes over these in silence.
            self.consume();
            return Ok(true);
        }
        self.state = State::Length { left: count as usize };
        Ok(true)
    }

    fn read_inline(&mut self) -> Result<bool, ProtocolError> {
        let Some(line) = self.line(ProtocolError::LongInline)? else {
            return Ok(false);
        };
        self.inline.clear();
        inline::split(&self.buffer[line], &mut self.inline, &mut self.arguments)
            .map_err(|inline::Unbalanced| ProtocolError::UnbalancedQuotes)?;
        if self.arguments.is_empty() {
            self.consume();
        } else {
            self.is_inline = true;
            self.state = State::Ready;
        }
        Ok(true)
    }

    /// None when there is no memory now; the length is then read again later.
    fn read_length(&mut self, left: usize, spare: Spare) -> Result<Option<bool>, ProtocolError> {
        let before = self.at;
        let Some(&first) = self.buffer.get(self.start + self.at) else {
            return Ok(Some(false));
        };
        if first != b'$' {
            return Err(ProtocolError::ExpectedBulk(first));
        }
        let Some(line) = self.line(ProtocolError::LongBulkLine)? else {
            return Ok(Some(false));
        };
        let length = number(&self.buffer[line.start + 1..line.end]).ok_or(ProtocolError::BulkLength)?;
        if !(0..=VALUE_MAX as i64).contains(&length) {
            return Err(ProtocolError::BulkLength);
        }
        let length = length as usize;
        let memory = self.at + length;
        if self.total + length > COMMAND_MAX || memory > spare.ever.max(READ_AHEAD) {
            self.oversized = true;
            self.arguments.clear();
        }
        if self.oversized {
            self.discard();
        } else if memory > spare.now.max(READ_AHEAD) {
            self.at = before;
            return Ok(None);
        } else {
            self.expect(length);
        }
        self.total += length;
        self.state = State::Bulk {
            left,
            missing: length + 2,
        };
        Ok(Some(true))
    }

    /// An argument follows that is to be kept.
    fn expect(&mut self, length: usize) {
        let begin = self.at as u32;
        self.arguments.push(begin..begin + length as u32);
        if length > READ_AHEAD {
            let more = (self.start + self.at + length + 2).saturating_sub(self.buffer.len());
            self.buffer.reserve_exact(more + READ_AHEAD);
        }
    }

    fn read_bulk(&mut self, left: usize, missing: usize) -> bool {
        let here = (self.buffer.len() - self.start - self.at).min(missing);
        self.at += here;
        if self.oversized {
            self.discard();
        }
        if here < missing {
            // `room` counts from `at`, so what is missing shrinks along with it.
            self.state = State::Bulk {
                left,
                missing: missing - here,
            };
            return false;
        }
        self.state = State::Length { left: left - 1 };
        true
    }

    /// Throws away what was parsed of a command that is too large.
    fn discard(&mut self) {
        self.start += self.at;
        self.at = 0;
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
    }

    /// The next line without its end, as a range of the buffer; passes over it.
    fn line(&mut self, too_long: ProtocolError) -> Result<Option<Range<usize>>, ProtocolError> {
        let from = self.start + self.at;
        let rest = &self.buffer[from..];
        let Some(end) = rest[self.searched..].iter().position(|&byte| byte == b'\n') else {
            self.searched = rest.len();
            return if rest.len() > LINE_MAX {
                Err(too_long)
            } else {
                Ok(None)
            };
        };
        let end = self.searched + end;
        if end > LINE_MAX {
            return Err(too_long);
        }
        self.searched = 0;
        self.at += end + 1;
        let bare = if rest[..end].last() == Some(&b'\r') {
            end - 1
        } else {
            end
        };
        Ok(Some(from..from + bare))
    }
}

#[cfg(test)]
mod tests;
