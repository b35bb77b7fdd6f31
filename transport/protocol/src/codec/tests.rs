//! What was written reads back, in pieces of any size; what was never written is refused and costs nothing.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::ids::{DeviceId, GuestTime, Head, LogOffset, NodeName, Position, QueueIndex, Term};
use crate::limits::{CENSUS_PAGES, MAX_MESSAGE, MAX_PAYLOAD, MAX_RECORD_HEAD};
use crate::message::{
    Ack, Census, Digest, Diverged, Foreign, Heartbeat, Hello, Image, Message, Role, Sentence,
};
use crate::record::{Input, Record};
use crate::session::{Parting, Timing};
use crate::time::Instant;

// --- Worlds ---

fn inputs() -> impl Strategy<Value = Input<Vec<u8>>> {
    let bytes = || vec(any::<u8>(), 0..200);
    prop_oneof![
        3 => Just(Input::Mark),
        3 => any::<u64>().prop_map(|time| Input::Tick { time: GuestTime::new(time) }),
        3 => (any::<u8>(), bytes()).prop_map(|(d, bytes)| Input::Frame { device: DeviceId::new(d), bytes }),
        3 => (any::<u8>(), any::<u16>(), any::<u16>(), bytes()).prop_map(|(d, q, h, bytes)| Input::Completion {
            device: DeviceId::new(d),
            queue: QueueIndex::new(q),
            head: Head::new(h),
            bytes,
        }),
        1 => (any::<u8>(), any::<u16>(), any::<u16>()).prop_map(|(d, q, count)| Input::Returned {
            device: DeviceId::new(d),
            queue: QueueIndex::new(q),
            count,
        }),
        1 => bytes().prop_map(|bytes| Input::Console { bytes }),
        1 => bytes().prop_map(|bytes| Input::DeltaPages { bytes }),
        1 => bytes().prop_map(|bytes| Input::DeltaEnd { bytes }),
        1 => bytes().prop_map(|bytes| Input::Digest { bytes }),
        1 => Just(Input::Heal),
    ]
}

/// Logs that a primary could make: power-on first, positions rising, each window closed at its end.
fn logs() -> impl Strategy<Value = Vec<Record<Vec<u8>>>> {
    let steps = vec((1_u64..1 << 40, any::<bool>(), inputs()), 0..40);
    (any::<[u8; 32]>(), steps).prop_map(|(seed, steps)| {
        let first = Record {
            position: Position::ZERO,
            closes: true,
            input: Input::PowerOn { seed },
        };
        let mut position = Position::ZERO;
        let later = steps.into_iter().map(|(distance, closes, input)| {
            position = position.advance(distance);
            Record {
                position,
                closes,
                input,
            }
        });
        std::iter::once(first).chain(later).collect()
    })
}

fn encoded(log: &[Record<Vec<u8>>]) -> Bytes {
    let mut encoder = RecordEncoder::new();
    let mut out = BytesMut::new();
    log.iter().for_each(|r| {
        encoder.encode(
            &mut out,
            &Record {
                position: r.position,
                closes: r.closes,
                input: r.input.borrowed(),
            },
        );
    });
    out.freeze()
}

fn one(position: u64, closes: bool, input: Input<&[u8]>) -> Record<&[u8]> {
    Record {
        position: Position::new(position),
        closes,
        input,
    }
}

/// Cuts `bytes` into pieces of the given sizes, over and over.
fn pieces(bytes: &Bytes, sizes: &[usize]) -> Vec<Bytes> {
    let mut rest = bytes.clone();
    let sizes = sizes.iter().cycle();
    sizes
        .map_while(|size| (!rest.is_empty()).then(|| rest.split_to((*size).min(rest.len()))))
        .collect()
}

fn decode(pieces: Vec<Bytes>) -> Result<Vec<Record>, LogFault> {
    let mut decoder = RecordDecoder::new();
    let mut records = Vec::new();
    for mut piece in pieces {
        while let Some(record) = decoder.decode(&mut piece)? {
            records.push(record);
        }
        assert!(piece.is_empty(), "a decoder takes all that it is given");
    }
    Ok(records)
}

fn fault(bytes: &[u8]) -> LogFault {
    decode(vec![Bytes::copy_from_slice(bytes)]).unwrap_err()
}

// --- Records ---

proptest! {
    #[test]
    fn a_log_reads_back_in_pieces_of_any_size(log in logs(), sizes in vec(1_usize..300, 1..8)) {
        let wire = encoded(&log);
        let read = decode(pieces(&wire, &sizes)).unwrap();
        prop_assert_eq!(read.len(), log.len());
        for (read, written) in read.iter().zip(&log) {
            prop_assert_eq!(read.position, written.position);
            prop_assert_eq!(read.closes, written.closes);
            prop_assert_eq!(read.input.borrowed(), written.input.borrowed());
        }
    }

    #[test]
    fn noise_is_refused_or_read_and_kept_within_limits(noise in vec(any::<u8>(), 0..2000), size in 1_usize..300) {
        let mut decoder = RecordDecoder::new();
        let mut read = 0;
        for mut piece in pieces(&Bytes::from(noise.clone()), &[size]) {
            let outcome = std::iter::from_fn(|| decoder.decode(&mut piece).transpose()).take_while(Result::is_ok);
            read += outcome.map(|r| r.unwrap().input.payload().len()).sum::<usize>();
        }
        prop_assert!(read <= noise.len());
    }

    #[test]
    fn a_damaged_log_never_panics(log in logs(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut wire = encoded(&log).to_vec();
        let at = at.index(wire.len());
        wire[at] = to;
        let _ = decode(vec![Bytes::from(wire)]);
    }

    #[test]
    fn numbers_of_either_sign_fold_and_unfold(number in any::<i64>()) {
        prop_assert_eq!(unzigzag(zigzag(number)), number);
    }

    #[test]
    fn a_varint_reads_back_and_its_prefixes_are_short(number in any::<u64>()) {
        let mut out = BytesMut::new();
        put_varint(&mut out, number);
        prop_assert_eq!(Reader { rest: &out }.varint(), Ok(number));
        prop_assert_eq!(Reader { rest: &out[..out.len() - 1] }.varint(), Err(Unread::Short));
    }
}

#[test]
fn a_mark_costs_two_bytes_and_a_tick_of_a_millisecond_six_at_most() {
    let mut encoder = RecordEncoder::new();
    let mut out = BytesMut::new();
    encoder.encode(&mut out, &one(1, false, Input::Mark));
    assert_eq!(out.len(), 2);
    encoder.encode(
        &mut out,
        &one(
            1,
            true,
            Input::Tick {
                time: GuestTime::new(1_000_000),
            },
        ),
    );
    assert!(out.len() <= 2 + 6);
}

#[test]
fn the_longest_heads_fit_the_limit() {
    let far = Record {
        position: Position::MAX,
        closes: true,
        input: Input::Completion {
            device: DeviceId::new(u8::MAX),
            queue: QueueIndex::new(u16::MAX),
            head: Head::new(u16::MAX),
            bytes: vec![0; MAX_PAYLOAD],
        },
    };
    assert!(encoded(&[far]).len() - MAX_PAYLOAD <= MAX_RECORD_HEAD);
    let on = Record {
        position: Position::ZERO,
        closes: true,
        input: Input::PowerOn { seed: [7; 32] },
    };
    assert!(encoded(&[on]).len() <= MAX_RECORD_HEAD);
}

#[test]
fn a_payload_that_lies_in_one_piece_is_not_copied() {
    let frame = one(
        3,
        true,
        Input::Frame {
            device: DeviceId::ZERO,
            bytes: b"frame",
        },
    );
    let mut out = BytesMut::new();
    RecordEncoder::new().encode(&mut out, &frame);
    let wire = out.freeze();
    let mut piece = wire.clone();
    let record = RecordDecoder::new().decode(&mut piece).unwrap().unwrap();
    assert!(wire.as_ptr_range().contains(&record.input.payload().as_ptr()));
}

#[test]
fn kind_zero_and_reserved_bits_are_refused() {
    assert_eq!(fault(&[0, 0]), LogFault::UnknownKind(0));
    assert_eq!(fault(&[0x12, 0]), LogFault::UnknownKind(0x12));
    assert_eq!(fault(&[12, 0]), LogFault::UnknownKind(12));
}

#[test]
fn a_payload_over_the_limit_is_refused_by_its_length_alone() {
    let mut out = BytesMut::from(&[7, 0][..]);
    put_varint(&mut out, MAX_PAYLOAD as u64 + 1);
    assert_eq!(
        fault(&out),
        LogFault::PayloadTooLong {
            length: MAX_PAYLOAD as u64 + 1
        }
    );
}

#[test]
fn a_number_longer_than_it_must_be_is_refused() {
    assert_eq!(fault(&[2, 0x80, 0]), LogFault::BadNumber(Position::ZERO));
    assert_eq!(
        fault(&[2, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2]),
        LogFault::BadNumber(Position::ZERO)
    );
}

#[test]
fn a_position_that_would_wrap_around_is_refused() {
    let mut out = BytesMut::new();
    RecordEncoder::new().encode(&mut out, &one(u64::MAX, true, Input::Mark));
    out.extend_from_slice(&[2, 1]);
    assert_eq!(fault(&out), LogFault::BadNumber(Position::MAX));
}

#[test]
fn a_record_for_a_closed_window_is_refused() {
    assert_eq!(fault(&[0x82, 5, 2, 0]), LogFault::WindowClosed(Position::new(5)));
}

#[test]
fn a_delta_and_nothing_else_opens_a_closed_window_again() {
    let closed = [0x82, 5];
    let tick_after = |delta: &[u8]| [&closed[..], delta, &[0x83, 0, 2]].concat();
    let [pages, end] = [&[8, 0, 1, 7][..], &[9, 0, 1, 7]];
    assert_eq!(decode(vec![Bytes::from(tick_after(end))]).unwrap().len(), 3);
    assert_eq!(
        decode(vec![Bytes::from(tick_after(&[pages, end].concat()))])
            .unwrap()
            .len(),
        4
    );
    assert_eq!(fault(&tick_after(&[])), LogFault::WindowClosed(Position::new(5)));
}

#[test]
fn a_window_that_was_left_open_closes_when_the_log_moves_on() {
    assert_eq!(
        decode(vec![Bytes::from_static(&[2, 5, 2, 0, 2, 1])])
            .unwrap()
            .len(),
        3
    );
}

#[test]
fn a_machine_cannot_be_switched_on_while_it_runs() {
    let mut out = BytesMut::from(&[2, 1, 1, 0][..]);
    out.extend_from_slice(&[0; 32]);
    assert_eq!(fault(&out), LogFault::LatePowerOn(Position::new(1)));
}

#[test]
#[should_panic(expected = "I2")]
fn our_own_record_for_a_closed_window_is_a_bug() {
    let mut encoder = RecordEncoder::new();
    encoder.encode(&mut BytesMut::new(), &one(5, true, Input::Mark));
    encoder.encode(&mut BytesMut::new(), &one(5, true, Input::Mark));
}

// --- Messages ---

fn hello() -> Hello {
    Hello {
        version: crate::limits::PROTOCOL_VERSION,
        release: "0.1.0".into(),
        node: NodeName::new("a").unwrap(),
        role: Role::Primary,
        term: Term::new(3),
        start: LogOffset::new(9),
        config: Digest::new([1; 32]),
        template: Digest::new([2; 32]),
        devices: Digest::new([3; 32]),
        image: None,
        timing: Timing::default(),
    }
}

fn messages() -> impl Strategy<Value = Message> {
    let instant = || any::<u64>().prop_map(Instant::from_nanos);
    prop_oneof![
        Just(Message::Hello(Box::new(hello()))),
        ("[a-z]{0,8}", any::<[u8; 32]>()).prop_map(|(holder, digest)| {
            Message::Hello(Box::new(Hello {
                image: Some(Image {
                    digest: Digest::new(digest),
                    last_holder: NodeName::new(&holder).ok(),
                }),
                ..hello()
            }))
        }),
        Just(Message::Goodbye(Parting::Stopped)),
        ".{0,200}".prop_map(|text| Message::Refused(Sentence::new(&text))),
        (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(term, upto, executed, at)| {
            Message::Ack(Ack {
                term: Term::new(term),
                upto: LogOffset::new(upto),
                executed: LogOffset::new(executed),
                position: Position::new(at),
            })
        }),
        (any::<u64>(), instant(), proptest::option::of(instant())).prop_map(|(term, sent_at, echo)| {
            Message::Heartbeat(Heartbeat {
                term: Term::new(term),
                sent_at,
                echo,
            })
        }),
    ]
}

fn divergence() -> impl Strategy<Value = Message> {
    let numbers = (any::<u64>(), any::<u64>());
    prop_oneof![
        (numbers, ".{0,200}").prop_map(|((term, at), what)| Message::Diverged(Diverged {
            term: Term::new(term),
            position: Position::new(at),
            what: Sentence::new(&what),
        })),
        (numbers, any::<bool>(), vec(any::<u64>(), 0..=CENSUS_PAGES)).prop_map(
            |((term, first), is_last, hashes)| {
                Message::Census(Census {
                    term: Term::new(term),
                    first,
                    is_last,
                    hashes,
                })
            }
        ),
    ]
}

fn read_messages(pieces: Vec<Bytes>) -> Result<Vec<Message>, MessageFault> {
    let mut decoder = MessageDecoder::new();
    let mut read = Vec::new();
    for mut piece in pieces {
        while let Some(message) = decoder.decode(&mut piece)? {
            read.push(message);
        }
    }
    Ok(read)
}

fn message_fault(bytes: &[u8]) -> MessageFault {
    read_messages(vec![Bytes::copy_from_slice(bytes)]).unwrap_err()
}

proptest! {
    #[test]
    fn what_a_diverged_backup_says_reads_back(said in vec(divergence(), 0..4)) {
        let mut out = BytesMut::new();
        said.iter().for_each(|message| encode_message(&mut out, message));
        prop_assert_eq!(read_messages(vec![out.freeze()]).unwrap(), said);
    }

    #[test]
    fn messages_read_back_in_pieces_of_any_size(said in vec(messages(), 0..12), sizes in vec(1_usize..90, 1..8)) {
        let mut out = BytesMut::new();
        said.iter().for_each(|message| encode_message(&mut out, message));
        prop_assert_eq!(read_messages(pieces(&out.freeze(), &sizes)).unwrap(), said);
    }

    #[test]
    fn noise_on_a_message_stream_never_panics(noise in vec(any::<u8>(), 0..3000)) {
        let _ = read_messages(vec![Bytes::from(noise)]);
    }

    #[test]
    fn a_damaged_hello_never_panics(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut out = BytesMut::new();
        encode_message(&mut out, &Message::Hello(Box::new(hello())));
        let at = at.index(out.len());
        out[at] = to;
        let _ = read_messages(vec![out.freeze()]);
    }
}

#[test]
fn a_message_over_the_limit_is_refused_by_its_head_alone() {
    assert_eq!(message_fault(&[2, 0xff, 0xff]), MessageFault::TooLong(3 + 0xffff));
    const { assert!(MAX_MESSAGE < 0xffff) };
}

#[test]
fn an_unknown_message_is_refused() {
    assert_eq!(message_fault(&[0, 0, 0]), MessageFault::UnknownKind(0));
    assert_eq!(message_fault(&[8, 0, 0]), MessageFault::UnknownKind(8));
}

#[test]
fn a_body_that_is_too_short_or_too_long_is_refused() {
    assert_eq!(message_fault(&[3, 0, 0]), MessageFault::Malformed(3));
    assert_eq!(message_fault(&[3, 2, 0, 1, 1]), MessageFault::Malformed(3));
    assert_eq!(message_fault(&[3, 1, 0, 9]), MessageFault::Malformed(3));
}

#[test]
fn the_hello_of_another_version_still_says_who_speaks() {
    let theirs = Hello {
        version: 7,
        release: "9.9.9".into(),
        ..hello()
    };
    let mut out = BytesMut::new();
    encode_message(&mut out, &Message::Hello(Box::new(theirs)));
    let node = NodeName::new("a").unwrap();
    let expected = Message::Foreign(Foreign {
        version: 7,
        release: "9.9.9".into(),
        node,
    });
    assert_eq!(read_messages(vec![out.freeze()]).unwrap(), [expected]);
}
