//! RESP2 replies: what a command writes to its connection. Bounded: a reply that grows too long is replaced by an error.

use alloc::vec::Vec;
use core::fmt::{self, Write};

/// From this on a value's room is made exactly.
const LARGE: usize = 8 << 10;

/// Writes one reply at the end of a connection's output.
#[derive(Debug)]
pub struct Reply<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    end_max: usize,
    is_too_long: bool,
}

impl<'a> Reply<'a> {
    /// A reply of at most `most` bytes.
    pub fn new(out: &'a mut Vec<u8>, most: usize) -> Self {
        let start = out.len();
        Reply {
            out,
            start,
            end_max: start + most,
            is_too_long: false,
        }
    }

    /// `+OK`.
    pub fn ok(&mut self) {
        self.simple("OK");
    }

    /// A simple string, which must hold no line end.
    pub fn simple(&mut self, text: &str) {
        self.line(format_args!("+{text}"));
    }

    /// A number.
    pub fn integer(&mut self, number: i64) {
        self.line(format_args!(":{number}"));
    }

    /// A count.
    pub fn count(&mut self, count: usize) {
        self.integer(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Bytes.
    pub fn bulk(&mut self, bytes: &[u8]) {
        if !self.has_room(bytes.len() + 32) {
            return;
        }
        if bytes.len() > LARGE {
            // Doubling would waste up to as much again.
            self.out.reserve_exact(bytes.len() + 32);
        }
        self.line(format_args!("${}", bytes.len()));
        self.out.extend_from_slice(bytes);
        self.out.extend_from_slice(b"\r\n");
    }

    /// The absence of bytes.
    pub fn null(&mut self) {
        self.line(format_args!("$-1"));
    }

    /// The head of an array; its elements follow.
    pub fn array(&mut self, len: usize) {
        self.line(format_args!("*{len}"));
    }

    /// An error, its code first. Line ends in the text become blanks.
    pub fn error(&mut self, text: fmt::Arguments<'_>) {
        self.out.push(b'-');
        let begin = self.out.len();
        self.write(text);
        for byte in &mut self.out[begin..] {
            if matches!(byte, b'\r' | b'\n') {
                *byte = b' ';
            }
        }
        self.out.extend_from_slice(b"\r\n");
    }

    /// Forgets what was written of the reply.
    pub fn retract(&mut self) {
        self.out.truncate(self.start);
    }

    /// Whether the reply found no room. What was written of it then means nothing.
    pub fn is_too_long(&self) -> bool {
        self.is_too_long
    }

    fn line(&mut self, text: fmt::Arguments<'_>) {
        if self.has_room(64) {
            self.write(text);
            self.out.extend_from_slice(b"\r\n");
        }
    }

    fn has_room(&mut self, bytes: usize) -> bool {
        self.is_too_long |= self.out.len() + bytes > self.end_max;
        !self.is_too_long
    }

    fn write(&mut self, text: fmt::Arguments<'_>) {
        // Writing to memory cannot fail.
        let _ = Sink(self.out).write_fmt(text);
    }
}

struct Sink<'a>(&'a mut Vec<u8>);

impl Write for Sink<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}
