//! Bytes to and from records and messages: these files alone know the wire. Every reader fails closed, takes
//! its bytes in pieces of any size, and keeps no more of them than one record or one message.
//!
//! Numbers are little-endian; a varint is seven bits a byte, lowest first, and never longer than it must be.

mod decoder;
mod messages;
mod records;

pub use decoder::{LogFault, RecordDecoder};
pub use messages::{MessageDecoder, MessageFault, encode_message};
pub use records::RecordEncoder;

use bytes::{BufMut, BytesMut};

/// Why bytes could not be read: not all here yet, or never right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unread {
    Short,
    Malformed,
}

/// Bytes being read from the front.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Unread> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Unread::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unread> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Unread::Short)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, Unread> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, Unread> {
        self.array().map(u16::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Unread> {
        self.array().map(u64::from_le_bytes)
    }

    fn varint(&mut self) -> Result<u64, Unread> {
        let mut value = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if (bits << shift) >> shift != bits {
                return Err(Unread::Malformed);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                // A zero at the end says nothing: one number has one encoding.
                let overlong = byte == 0 && shift > 0;
                return if overlong {
                    Err(Unread::Malformed)
                } else {
                    Ok(value)
                };
            }
        }
        Err(Unread::Malformed)
    }
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Small differences of either sign become small numbers.
fn zigzag(difference: i64) -> u64 {
    ((difference << 1) ^ (difference >> 63)) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

#[cfg(test)]
mod tests;
