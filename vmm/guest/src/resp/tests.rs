//! The parser on good, bad and random bytes, at any split.

use alloc::vec::Vec;
use std::string::String;
use std::{format, vec};

use proptest::prelude::*;

use super::*;

const PLENTY: Spare = Spare {
    now: usize::MAX,
    ever: usize::MAX,
};

/// What a stream of bytes comes to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    commands: Vec<Vec<Vec<u8>>>,
    oversized: usize,
    end: Option<ProtocolError>,
}

/// Feeds the bytes in pieces of at most `piece`, as the room allows.
fn hear(bytes: &[u8], piece: usize, spare: Spare) -> Heard {
    let mut parser = Parser::new();
    let mut heard = Heard::default();
    let mut rest = bytes;
    loop {
        match parser.step(spare) {
            Ok(Step::Hungry) => {
                let room = parser.room();
                assert!(room > 0, "a hungry parser has room");
                if rest.is_empty() {
                    return heard;
                }
                let (now, later) = rest.split_at(piece.min(room).min(rest.len()));
                parser.feed(now);
                rest = later;
            }
            Ok(Step::Command) => {
                heard
                    .commands
                    .push(parser.arguments().from(0).map(<[u8]>::to_vec).collect());
                parser.consume();
            }
            Ok(Step::Oversized) => {
                heard.oversized += 1;
                parser.consume();
            }
            Ok(Step::Starved) => return heard,
            Err(error) => {
                heard.end = Some(error);
                return heard;
            }
        }
    }
}

fn request(arguments: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        bytes.extend_from_slice(argument);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

fn error(bytes: &[u8]) -> String {
    hear(bytes, usize::MAX, PLENTY)
        .end
        .map(|error| format!("{error}"))
        .unwrap_or_default()
}

#[test]
fn bad_requests_are_told_off_in_redis_words() {
    assert_eq!(error(b"*x\r\n"), "Protocol error: invalid multibulk length");
    assert_eq!(
        error(b"*99999999999\r\n"),
        "Protocol error: invalid multibulk length"
    );
    assert_eq!(error(b"*1\r\n!"), "Protocol error: expected '$', got '!'");
    assert_eq!(error(b"*1\r\n$-1\r\n"), "Protocol error: invalid bulk length");
    assert_eq!(
        error(b"*1\r\n$1073741824\r\n"),
        "Protocol error: invalid bulk length"
    );
    assert_eq!(
        error(b"get \"a\r\n"),
        "Protocol error: unbalanced quotes in request"
    );
    assert_eq!(
        error(&vec![b'a'; LINE_MAX + 2]),
        "Protocol error: too big inline request"
    );
    let mut count = vec![b'*'];
    count.extend_from_slice(&vec![b'1'; LINE_MAX + 2]);
    assert_eq!(error(&count), "Protocol error: too big mbulk count string");
}

#[test]
fn empty_requests_are_passed_over() {
    let heard = hear(b"\r\n*0\r\n*-1\r\n  \r\nPING\r\n", usize::MAX, PLENTY);
    assert_eq!(heard.commands, [[b"PING".to_vec()]]);
}

#[test]
fn a_long_inline_command_is_heard_although_it_exceeds_the_read_ahead() {
    let mut line = vec![b'a'; LINE_MAX - 10];
    line.extend_from_slice(b"\r\n");
    assert_eq!(hear(&line, usize::MAX, PLENTY).commands.len(), 1);
}

#[test]
fn a_command_larger_than_the_memory_is_thrown_away_and_the_next_is_heard() {
    let large = vec![7; VALUE_MAX / 2];
    let mut bytes = request(&[b"SET", b"k", &large]);
    bytes.extend_from_slice(&request(&[b"PING"]));
    let heard = hear(
        &bytes,
        1000,
        Spare {
            now: 1000,
            ever: 1000,
        },
    );
    assert_eq!((heard.oversized, heard.commands.len()), (1, 1));
}

#[test]
fn a_command_waits_for_memory_that_others_will_let_go_of() {
    let large = vec![7; 100_000];
    let mut parser = Parser::new();
    parser.feed(&request(&[b"SET", b"k", &large])[..200]);
    assert_eq!(
        parser.step(Spare {
            now: 50_000,
            ever: 200_000
        }),
        Ok(Step::Starved)
    );
    assert_eq!(
        parser.step(Spare {
            now: 50_000,
            ever: 200_000
        }),
        Ok(Step::Starved)
    );
    assert_eq!(parser.step(PLENTY), Ok(Step::Hungry));
}

#[test]
fn many_small_arguments_are_heard_although_they_exceed_the_read_ahead() {
    let arguments = vec![&b"x"[..]; 20_000];
    let heard = hear(&request(&arguments), 1000, PLENTY);
    assert_eq!(heard.commands[0].len(), 20_000);
}

#[test]
fn memory_is_let_go_of_after_a_large_command() {
    let large = vec![7; VALUE_MAX];
    let mut parser = Parser::new();
    let bytes = request(&[b"SET", b"k", &large]);
    let mut rest = &bytes[..];
    while parser.step(PLENTY) == Ok(Step::Hungry) {
        let (now, later) = rest.split_at(parser.room().min(rest.len()));
        parser.feed(now);
        rest = later;
    }
    parser.consume();
    assert!(parser.held() < 4 * READ_AHEAD);
}

#[test]
fn numbers_are_read_as_redis_reads_them() {
    let cases = [
        "0",
        "-1",
        "9223372036854775807",
        "-9223372036854775808",
        "9223372036854775808",
        "+1",
        "01",
        "-0",
        "",
        "-",
        " 1",
    ];
    let read = cases.map(|text| number(text.as_bytes()));
    assert_eq!(
        read,
        [
            Some(0),
            Some(-1),
            Some(i64::MAX),
            Some(i64::MIN),
            None,
            None,
            None,
            None,
            None,
            None,
            None
        ]
    );
}

proptest! {
    #[test]
    fn any_bytes_at_any_split_come_to_the_same(bytes in prop::collection::vec(any::<u8>(), 0..300), piece in 1_usize..40) {
        prop_assert_eq!(hear(&bytes, piece, PLENTY), hear(&bytes, usize::MAX, PLENTY));
    }

    #[test]
    fn any_protocol_like_bytes_at_any_split_come_to_the_same(
        bytes in prop::collection::vec(prop::sample::select(&b"*$\r\n0123-aP\"'"[..]), 0..200),
        piece in 1_usize..20,
    ) {
        prop_assert_eq!(hear(&bytes, piece, PLENTY), hear(&bytes, usize::MAX, PLENTY));
    }

    #[test]
    fn commands_are_heard_as_they_were_said(
        commands in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 1..6), 0..8),
        piece in 1_usize..60,
    ) {
        let mut bytes = Vec::new();
        for command in &commands {
            let arguments: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
            bytes.extend_from_slice(&request(&arguments));
        }
        prop_assert_eq!(hear(&bytes, piece, PLENTY).commands, commands);
    }
}
