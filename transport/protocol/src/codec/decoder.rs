//! Records off the log stream, from pieces of any size. The backup's intake decodes here. It keeps at most one
//! record's bytes, allocates no more than a payload may have, and reads nothing after a fault.

use bytes::{Buf, Bytes, BytesMut};

use super::records::{
    CLOSES, COMPLETION, CONSOLE, Cursor, DELTA_END, DELTA_PAGES, DIGEST, FRAME, HEAL, MARK, POWER_ON,
    RETURNED, TICK,
};
use super::{Reader, Unread, unzigzag};
use crate::ids::{DeviceId, GuestTime, Head, Position, QueueIndex};
use crate::limits::{MAX_PAYLOAD, MAX_RECORD_HEAD};
use crate::record::{Input, Record};

/// What a peer's log stream cannot contain. The session ends; nothing after the fault is read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogFault {
    /// No such kind of record.
    #[error("The log has a record of unknown kind {0:#04x}")]
    UnknownKind(u8),
    /// A number is too large for its field, or longer than it must be.
    #[error("The log has a malformed number after position {0}")]
    BadNumber(Position),
    /// A payload is longer than any record's may be.
    #[error("The log has a record of {length} bytes, at most {MAX_PAYLOAD} are allowed")]
    PayloadTooLong {
        /// The length it claims.
        length: u64,
    },
    /// A record of a window that was already closed.
    #[error("The log has a record for the window at position {0}, which is closed")]
    WindowClosed(Position),
    /// A machine is switched on once, first of all.
    #[error("The log switches the machine on at position {0}")]
    LatePowerOn(Position),
}

/// Turns the bytes of one log stream back into records, from pieces of any size.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RecordDecoder {
    cursor: Cursor,
    partial: Partial,
}

/// The piece of a record that has come so far.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Partial {
    /// Some bytes of its head, maybe none.
    Head {
        bytes: [u8; MAX_RECORD_HEAD],
        len: usize,
    },
    /// Its head, and some bytes of its payload.
    Payload { head: RecordHead, payload: BytesMut },
}

impl Partial {
    const NOTHING: Self = Self::Head {
        bytes: [0; MAX_RECORD_HEAD],
        len: 0,
    };
}

/// All of a record but its payload: `input` holds the payload's length.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct RecordHead {
    position: Position,
    closes: bool,
    input: Input<Payload>,
}

/// How long a payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Payload(usize);

impl Default for RecordDecoder {
    fn default() -> Self {
        Self {
            cursor: Cursor::default(),
            partial: Partial::NOTHING,
        }
    }
}

impl RecordDecoder {
    /// At the beginning of a log stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next whole record. Takes bytes from the front of `chunk`; gives `None` once it has taken them all.
    /// A payload that lies wholly in `chunk` is a slice of it. After a fault the stream is of no more use.
    pub fn decode(&mut self, chunk: &mut Bytes) -> Result<Option<Record>, LogFault> {
        if chunk.is_empty() {
            return Ok(None);
        }
        match std::mem::replace(&mut self.partial, Partial::NOTHING) {
            Partial::Head { len: 0, .. } => self.decode_head(chunk),
            Partial::Head { bytes, len } => self.complete_head(bytes, len, chunk),
            Partial::Payload { head, payload } => Ok(self.complete_payload(head, payload, chunk)),
        }
    }

    /// How many bytes it has made room for, of a record that is not whole.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        match &self.partial {
            Partial::Head { len, .. } => *len,
            Partial::Payload { payload, .. } => payload.capacity(),
        }
    }

    /// Nothing is left over from the chunk before.
    fn decode_head(&mut self, chunk: &mut Bytes) -> Result<Option<Record>, LogFault> {
        match self.parse_head(chunk)? {
            Some((head, len)) => {
                chunk.advance(len);
                Ok(self.start_payload(head, chunk))
            }
            None => {
                self.keep_head([0; MAX_RECORD_HEAD], 0, chunk);
                Ok(None)
            }
        }
    }

    /// Some bytes of a head are left over from the chunks before.
    fn complete_head(
        &mut self,
        mut bytes: [u8; MAX_RECORD_HEAD],
        len: usize,
        chunk: &mut Bytes,
    ) -> Result<Option<Record>, LogFault> {
        let more = chunk.len().min(MAX_RECORD_HEAD - len);
        bytes[len..len + more].copy_from_slice(&chunk[..more]);
        match self.parse_head(&bytes[..len + more])? {
            Some((head, whole)) => {
                chunk.advance(whole - len);
                Ok(self.start_payload(head, chunk))
            }
            None => {
                self.keep_head(bytes, len, chunk);
                Ok(None)
            }
        }
    }

    /// Keeps what has come of a head. All of `chunk` fits: no head that can be read is longer than the limit.
    fn keep_head(&mut self, mut bytes: [u8; MAX_RECORD_HEAD], len: usize, chunk: &mut Bytes) {
        let whole = len + chunk.len();
        bytes[len..whole].copy_from_slice(chunk);
        chunk.clear();
        self.partial = Partial::Head { bytes, len: whole };
    }

    fn start_payload(&mut self, head: RecordHead, chunk: &mut Bytes) -> Option<Record> {
        self.cursor.position = head.position;
        self.cursor.closed = head.closes;
        if let Input::Tick { time } = head.input {
            self.cursor.time = time;
        }
        let length = head.payload_len();
        if length <= chunk.len() {
            return Some(head.with_payload(chunk.split_to(length)));
        }
        self.complete_payload(head, BytesMut::with_capacity(length), chunk)
    }

    fn complete_payload(
        &mut self,
        head: RecordHead,
        mut payload: BytesMut,
        chunk: &mut Bytes,
    ) -> Option<Record> {
        let missing = head.payload_len() - payload.len();
        let more = chunk.split_to(missing.min(chunk.len()));
        payload.extend_from_slice(&more);
        if payload.len() == head.payload_len() {
            return Some(head.with_payload(payload.freeze()));
        }
        self.partial = Partial::Payload { head, payload };
        None
    }

    /// A head at the front of `bytes` and its length; `None` while it is not all there.
    fn parse_head(&self, bytes: &[u8]) -> Result<Option<(RecordHead, usize)>, LogFault> {
        let kind = bytes[0] & !CLOSES;
        if !(POWER_ON..=HEAL).contains(&kind) {
            return Err(LogFault::UnknownKind(bytes[0]));
        }
        let mut reader = Reader { rest: bytes };
        match self.read_head(&mut reader, kind) {
            Ok(head) => {
                self.check_head(&head)?;
                Ok(Some((head, bytes.len() - reader.rest.len())))
            }
            Err(Unread::Short) => Ok(None),
            Err(Unread::Malformed) => Err(LogFault::BadNumber(self.cursor.position)),
        }
    }

    fn read_head(&self, from: &mut Reader<'_>, kind: u8) -> Result<RecordHead, Unread> {
        let closes = from.u8()? & CLOSES != 0;
        let distance = from.varint()?;
        let position = self
            .cursor
            .position
            .get()
            .checked_add(distance)
            .ok_or(Unread::Malformed)?;
        let input = match kind {
            POWER_ON => Input::PowerOn { seed: from.array()? },
            MARK => Input::Mark,
            TICK => {
                let distance = unzigzag(from.varint()?);
                Input::Tick {
                    time: GuestTime::new(self.cursor.time.get().wrapping_add(distance as u64)),
                }
            }
            FRAME => Input::Frame {
                device: DeviceId::new(from.u8()?),
                bytes: read_length(from)?,
            },
            COMPLETION => Input::Completion {
                device: DeviceId::new(from.u8()?),
                queue: QueueIndex::new(read_u16(from)?),
                head: Head::new(read_u16(from)?),
                bytes: read_length(from)?,
            },
            RETURNED => Input::Returned {
                device: DeviceId::new(from.u8()?),
                queue: QueueIndex::new(read_u16(from)?),
                count: read_u16(from)?,
            },
            CONSOLE => Input::Console {
                bytes: read_length(from)?,
            },
            DELTA_PAGES => Input::DeltaPages {
                bytes: read_length(from)?,
            },
            DELTA_END => Input::DeltaEnd {
                bytes: read_length(from)?,
            },
            DIGEST => Input::Digest {
                bytes: read_length(from)?,
            },
            _ => Input::Heal,
        };
        Ok(RecordHead {
            position: Position::new(position),
            closes,
            input,
        })
    }

    fn check_head(&self, head: &RecordHead) -> Result<(), LogFault> {
        let length = head.payload_len();
        if length > MAX_PAYLOAD {
            return Err(LogFault::PayloadTooLong {
                length: length as u64,
            });
        }
        if !self.cursor.admits(head.position, head.input.is_delta()) {
            return Err(LogFault::WindowClosed(head.position));
        }
        if matches!(head.input, Input::PowerOn { .. }) && head.position > Position::ZERO {
            return Err(LogFault::LatePowerOn(head.position));
        }
        Ok(())
    }
}

fn read_u16(from: &mut Reader<'_>) -> Result<u16, Unread> {
    u16::try_from(from.varint()?).map_err(|_| Unread::Malformed)
}

fn read_length(from: &mut Reader<'_>) -> Result<Payload, Unread> {
    usize::try_from(from.varint()?)
        .map(Payload)
        .map_err(|_| Unread::Malformed)
}

impl RecordHead {
    fn payload_len(&self) -> usize {
        match &self.input {
            Input::Frame { bytes, .. }
            | Input::Completion { bytes, .. }
            | Input::Console { bytes }
            | Input::DeltaPages { bytes }
            | Input::DeltaEnd { bytes }
            | Input::Digest { bytes } => bytes.0,
            Input::PowerOn { .. }
            | Input::Mark
            | Input::Heal
            | Input::Tick { .. }
            | Input::Returned { .. } => 0,
        }
    }

    /// The whole record. A record without a payload drops the empty one.
    fn with_payload(self, payload: Bytes) -> Record {
        let input = match self.input {
            Input::PowerOn { seed } => Input::PowerOn { seed },
            Input::Mark => Input::Mark,
            Input::Tick { time } => Input::Tick { time },
            Input::Frame { device, .. } => Input::Frame {
                device,
                bytes: payload,
            },
            Input::Completion {
                device, queue, head, ..
            } => Input::Completion {
                device,
                queue,
                head,
                bytes: payload,
            },
            Input::Returned { device, queue, count } => Input::Returned { device, queue, count },
            Input::Console { .. } => Input::Console { bytes: payload },
            Input::DeltaPages { .. } => Input::DeltaPages { bytes: payload },
            Input::DeltaEnd { .. } => Input::DeltaEnd { bytes: payload },
            Input::Digest { .. } => Input::Digest { bytes: payload },
            Input::Heal => Input::Heal,
        };
        Record {
            position: self.position,
            closes: self.closes,
            input,
        }
    }
}
