//! Messages read back, and what is none is refused; the hello of another version still says who speaks.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::super::*;
use super::pieces;
use crate::ids::{LogOffset, NodeName, Position, Term};
use crate::limits::{CENSUS_PAGES, MAX_MESSAGE};
use crate::message::{
    Ack, Census, Digest, Diverged, Foreign, Heartbeat, Hello, Image, Message, Role, Sentence,
};
use crate::session::Parting;
use crate::time::Instant;

/// In the order of their numbers, from 1 on.
const PARTINGS: [Parting; 5] = [
    Parting::PowerOff,
    Parting::Stopped,
    Parting::Failed,
    Parting::DiskFailed,
    Parting::DeviceFailed,
];

fn hello() -> Hello {
    Hello {
        term: Term::new(3),
        start: LogOffset::new(9),
        config: Digest::new([1; 32]),
        template: Digest::new([2; 32]),
        devices: Digest::new([3; 32]),
        ..Hello::bare(NodeName::new("a").unwrap(), Role::Primary)
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
        prop::sample::select(&PARTINGS[..]).prop_map(Message::Goodbye),
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
fn every_reason_to_leave_has_its_number_and_reads_back() {
    (1..).zip(PARTINGS).for_each(|(number, why)| {
        let mut out = BytesMut::new();
        encode_message(&mut out, &Message::Goodbye(why));
        assert_eq!(out[..], [3, 1, 0, number]);
        assert_eq!(read_messages(vec![out.freeze()]), Ok(vec![Message::Goodbye(why)]));
    });
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
