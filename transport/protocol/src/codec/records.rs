//! Records onto the log stream: one byte of kind, the position as distance from the record before, then what
//! the kind needs. A mark or a tick in a quiet window costs 2 to 6 bytes.
//! The primary's append encodes here; `decoder` is the way back.

use bytes::{BufMut, BytesMut};

use super::{put_varint, zigzag};
use crate::ids::{GuestTime, Position};
use crate::limits::{MAX_PAYLOAD, MAX_RECORD_HEAD};
use crate::record::{Input, Record};

pub(super) const POWER_ON: u8 = 1;
pub(super) const MARK: u8 = 2;
pub(super) const TICK: u8 = 3;
pub(super) const FRAME: u8 = 4;
pub(super) const COMPLETION: u8 = 5;
pub(super) const RETURNED: u8 = 6;
pub(super) const CONSOLE: u8 = 7;
pub(super) const DELTA_PAGES: u8 = 8;
pub(super) const DELTA_END: u8 = 9;
pub(super) const DIGEST: u8 = 10;
pub(super) const HEAL: u8 = 11;
/// Set on the kind of a record that is the last of its window.
pub(super) const CLOSES: u8 = 0x80;

/// What both ends remember about the record before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Cursor {
    pub(super) position: Position,
    pub(super) closed: bool,
    pub(super) time: GuestTime,
}

impl Cursor {
    /// I2: positions never go back, and a closed window takes no more records; a delta opens it again.
    pub(super) fn admits(&self, position: Position, is_delta: bool) -> bool {
        position > self.position || (position == self.position && (!self.closed || is_delta))
    }
}

/// Turns records into the bytes of one log stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RecordEncoder {
    cursor: Cursor,
}

impl RecordEncoder {
    /// At the beginning of a log stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends one record to `out`. Panics when the caller breaks I2 or the payload limit: that is our bug.
    pub fn encode(&mut self, out: &mut BytesMut, record: &Record<&[u8]>) {
        let Record {
            position,
            closes,
            input,
        } = record;
        assert!(
            self.cursor.admits(*position, input.is_delta()),
            "a record enters a window that is still open (I2)"
        );
        assert!(input.payload().len() <= MAX_PAYLOAD, "a payload fits a record");
        out.reserve(MAX_RECORD_HEAD + input.payload().len());
        out.put_u8(kind(input) | if *closes { CLOSES } else { 0 });
        put_varint(out, position.since(self.cursor.position));
        self.put_rest(out, input);
        self.cursor.position = *position;
        self.cursor.closed = *closes;
    }

    fn put_rest(&mut self, out: &mut BytesMut, input: &Input<&[u8]>) {
        match input {
            Input::PowerOn { seed } => out.put_slice(seed),
            Input::Mark | Input::Heal => {}
            Input::Tick { time } => {
                put_varint(
                    out,
                    zigzag(time.get().wrapping_sub(self.cursor.time.get()) as i64),
                );
                self.cursor.time = *time;
            }
            Input::Frame { device, bytes } => {
                out.put_u8(device.get());
                put_payload(out, bytes);
            }
            Input::Completion {
                device,
                queue,
                head,
                bytes,
            } => {
                out.put_u8(device.get());
                put_varint(out, queue.get().into());
                put_varint(out, head.get().into());
                put_payload(out, bytes);
            }
            Input::Returned { device, queue, count } => {
                out.put_u8(device.get());
                put_varint(out, queue.get().into());
                put_varint(out, (*count).into());
            }
            Input::Console { bytes }
            | Input::DeltaPages { bytes }
            | Input::DeltaEnd { bytes }
            | Input::Digest { bytes } => put_payload(out, bytes),
        }
    }
}

fn kind(input: &Input<&[u8]>) -> u8 {
    match input {
        Input::PowerOn { .. } => POWER_ON,
        Input::Mark => MARK,
        Input::Tick { .. } => TICK,
        Input::Frame { .. } => FRAME,
        Input::Completion { .. } => COMPLETION,
        Input::Returned { .. } => RETURNED,
        Input::Console { .. } => CONSOLE,
        Input::DeltaPages { .. } => DELTA_PAGES,
        Input::DeltaEnd { .. } => DELTA_END,
        Input::Digest { .. } => DIGEST,
        Input::Heal => HEAL,
    }
}

fn put_payload(out: &mut BytesMut, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}
