//! One change of the store: what a write command does, what the log keeps and what recovery replays. The three share
//! this type, so they cannot disagree.

use alloc::vec::Vec;

use crate::limits::{KEY_MAX, VALUE_MAX};
use crate::units::Time;

/// What an encoded change takes beside its key and its value: kind, two lengths, expiry.
pub const OP_BYTES: usize = 1 + 4 + 4 + 8;

const PUT: u8 = 1;
const DELETE: u8 = 2;
const APPEND: u8 = 3;
const EXPIRE: u8 = 4;
const CLEAR: u8 = 5;

/// A change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// The key has this value from now on.
    Put {
        /// Which key.
        key: &'a [u8],
        /// The whole value.
        value: &'a [u8],
        /// When it goes away; [`Time::ZERO`] for never.
        expires: Time,
    },
    /// The key is gone.
    Delete {
        /// Which key.
        key: &'a [u8],
    },
    /// The value grows; a key that was not there begins empty.
    Append {
        /// Which key.
        key: &'a [u8],
        /// What comes at its end.
        tail: &'a [u8],
    },
    /// The key's expiry changes.
    Expire {
        /// Which key.
        key: &'a [u8],
        /// When it goes away; [`Time::ZERO`] for never.
        expires: Time,
    },
    /// Everything is gone.
    Clear,
}

/// Bytes that are no change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl<'a> Op<'a> {
    /// Length of the encoding.
    pub fn encoded_len(&self) -> usize {
        let (_, key, value, _) = self.parts();
        OP_BYTES + key.len() + value.len()
    }

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (kind, key, value, expires) = self.parts();
        out.push(kind);
        out.extend_from_slice(&(key.len() as u32).to_le_bytes());
        out.extend_from_slice(&(value.len() as u32).to_le_bytes());
        out.extend_from_slice(&expires.as_nanos().to_le_bytes());
        out.extend_from_slice(key);
        out.extend_from_slice(value);
    }

    /// Takes one change off the front of `bytes`.
    pub fn decode(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), Malformed> {
        let (head, rest) = bytes.split_at_checked(OP_BYTES).ok_or(Malformed)?;
        let key_len = read_u32(&head[1..5]) as usize;
        let value_len = read_u32(&head[5..9]) as usize;
        if key_len > KEY_MAX || value_len > VALUE_MAX {
            return Err(Malformed);
        }
        let expires =
            Time::from_nanos(u64::from(read_u32(&head[9..13])) | u64::from(read_u32(&head[13..17])) << 32);
        let (key, rest) = rest.split_at_checked(key_len).ok_or(Malformed)?;
        let (value, rest) = rest.split_at_checked(value_len).ok_or(Malformed)?;
        let op = match head[0] {
            PUT => Op::Put { key, value, expires },
            DELETE => Op::Delete { key },
            APPEND => Op::Append { key, tail: value },
            EXPIRE => Op::Expire { key, expires },
            CLEAR => Op::Clear,
            _ => return Err(Malformed),
        };
        Ok((op, rest))
    }

    fn parts(&self) -> (u8, &'a [u8], &'a [u8], Time) {
        match *self {
            Op::Put { key, value, expires } => (PUT, key, value, expires),
            Op::Delete { key } => (DELETE, key, &[], Time::ZERO),
            Op::Append { key, tail } => (APPEND, key, tail, Time::ZERO),
            Op::Expire { key, expires } => (EXPIRE, key, &[], expires),
            Op::Clear => (CLEAR, &[], &[], Time::ZERO),
        }
    }
}

fn read_u32(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, &byte| value << 8 | u32::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_change_comes_back_as_it_was_encoded(key in any::<Vec<u8>>(), value in any::<Vec<u8>>(), at in any::<u64>()) {
            let op = Op::Put { key: &key, value: &value, expires: Time::from_nanos(at) };
            let mut bytes = Vec::new();
            op.encode(&mut bytes);
            prop_assert_eq!(bytes.len(), op.encoded_len());
            prop_assert_eq!(Op::decode(&bytes), Ok((op, &[][..])));
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in any::<Vec<u8>>()) {
            let _ = Op::decode(&bytes);
        }
    }
}
