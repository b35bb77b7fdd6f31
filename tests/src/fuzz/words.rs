//! Words of a peer and of the arbiter: what is read from a stream is the same however it is cut, what was read can be
//! said again, and nothing grows beyond its limit.

use bytes::{Bytes, BytesMut};
use lockstep_arbiter::message::{self, Answer, Question};
use lockstep_protocol::backup::Backup;
use lockstep_protocol::codec::{MessageDecoder, RecordDecoder, RecordEncoder, encode_message};
use lockstep_protocol::ids::{LogOffset, Term};
use lockstep_protocol::limits::MAX_PAYLOAD;
use lockstep_protocol::message::Message;
use lockstep_protocol::record::Record;
use lockstep_protocol::session::Timing;
use lockstep_protocol::time::Instant;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A log stream.
pub(super) fn peer_log(bytes: &[u8]) {
    let Some((cut, stream)) = bytes.split_first() else {
        return;
    };
    let whole = decode_records(stream, stream.len());
    let pieces = decode_records(stream, 1 + usize::from(*cut));
    assert_eq!(whole, pieces, "a log reads the same however it is cut");
    let mut encoder = RecordEncoder::new();
    let mut again = BytesMut::new();
    for record in &whole {
        assert!(record.input.payload().len() <= MAX_PAYLOAD);
        encoder.encode(
            &mut again,
            &Record {
                position: record.position,
                closes: record.closes,
                input: record.input.borrowed(),
            },
        );
    }
    assert_eq!(
        decode_records(&again, again.len().max(1)),
        whole,
        "what was read can be said again"
    );
    backup_takes(stream, whole.len());
}

/// Every whole record before the first fault.
fn decode_records(stream: &[u8], piece: usize) -> Vec<Record> {
    let mut decoder = RecordDecoder::new();
    let mut records = Vec::new();
    for piece in stream.chunks(piece.max(1)) {
        let mut piece = Bytes::copy_from_slice(piece);
        loop {
            match decoder.decode(&mut piece) {
                Ok(Some(record)) => records.push(record),
                Ok(None) => break,
                Err(_) => return records,
            }
        }
    }
    records
}

/// A backup acks what it holds and no more (I1).
fn backup_takes(stream: &[u8], records: usize) {
    let now = Instant::from_nanos(1);
    let mut backup = Backup::new(Term::new(1), Timing::default(), LogOffset::ZERO, now);
    let _ = backup.handle_log_bytes(now, Bytes::copy_from_slice(stream));
    let held = backup.received().get();
    assert_eq!(
        held, records as u64,
        "a backup holds what was read before the fault"
    );
    let acked = backup.poll_ack().map_or(0, |ack| ack.upto.get());
    assert_eq!(acked, held);
    let delivered = std::iter::from_fn(|| backup.poll_deliver()).count();
    assert_eq!(delivered as u64, held);
}

/// A control, ack or heartbeat stream.
pub(super) fn peer_messages(bytes: &[u8]) {
    let Some((cut, stream)) = bytes.split_first() else {
        return;
    };
    let whole = decode_messages(stream, stream.len());
    let pieces = decode_messages(stream, 1 + usize::from(*cut));
    assert_eq!(whole, pieces, "messages read the same however they are cut");
    for message in whole {
        let mut again = BytesMut::new();
        encode_message(&mut again, &message);
        assert_eq!(
            decode_messages(&again, again.len()),
            [message],
            "what was read can be said again"
        );
    }
}

fn decode_messages(stream: &[u8], piece: usize) -> Vec<Message> {
    let mut decoder = MessageDecoder::new();
    let mut messages = Vec::new();
    for piece in stream.chunks(piece.max(1)) {
        let mut piece = Bytes::copy_from_slice(piece);
        loop {
            match decoder.decode(&mut piece) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(_) => return messages,
            }
        }
    }
    messages
}

/// What a VMM asks the arbiter's service, and what that answers.
pub(super) fn arbiter_messages(bytes: &[u8]) {
    repeats::<Question>(bytes);
    repeats::<Answer>(bytes);
}

fn repeats<M: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(said) = message::decode::<M>(bytes) {
        let again = message::decode::<M>(&message::encode(&said));
        assert_eq!(again.ok(), Some(said), "what was read can be said again");
    }
}
