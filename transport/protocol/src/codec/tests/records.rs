//! The log: what was recorded reads back, and no peer can make a decoder keep more than one record.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::super::*;
use super::pieces;
use crate::ids::{DeviceId, GuestTime, Head, Position, QueueIndex};
use crate::limits::{MAX_PAYLOAD, MAX_RECORD_HEAD};
use crate::record::{Input, Record};

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

/// How many bytes of payload the records in `piece` have.
fn payload_bytes(decoder: &mut RecordDecoder, piece: &mut Bytes) -> Result<usize, LogFault> {
    std::iter::from_fn(|| decoder.decode(piece).transpose())
        .map(|record| Ok(record?.input.payload().len()))
        .sum()
}

fn fault(bytes: &[u8]) -> LogFault {
    decode(vec![Bytes::copy_from_slice(bytes)]).unwrap_err()
}

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
    fn noise_is_refused_or_read_and_kept_within_limits(
        // One that there is: most noise would be refused by its first byte.
        kind in 1_u8..=11,
        noise in vec(any::<u8>(), 0..2000),
        size in 1_usize..300,
    ) {
        let noise = Bytes::from([&[kind][..], &noise].concat());
        let mut decoder = RecordDecoder::new();
        let mut read = 0;
        for mut piece in pieces(&noise, &[size]) {
            let Ok(bytes) = payload_bytes(&mut decoder, &mut piece) else { break };
            read += bytes;
            prop_assert!(decoder.kept() <= MAX_PAYLOAD, "{} bytes are kept", decoder.kept());
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
fn the_longest_payload_is_waited_for_with_room_for_itself_and_no_more() {
    let mut out = BytesMut::from(&[7, 0][..]);
    put_varint(&mut out, MAX_PAYLOAD as u64);
    out.extend_from_slice(b"its beginning");
    let mut decoder = RecordDecoder::new();
    assert_eq!(decoder.decode(&mut out.freeze()), Ok(None));
    assert_eq!(decoder.kept(), MAX_PAYLOAD);
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
