//! What a backup holds, says and hands on. Stories of a whole pair are in `tests/pair.rs`.

use super::*;
use crate::codec::RecordEncoder;
use crate::record::Input;
use crate::time::Duration;
use bytes::BytesMut;

const TERM: Term = Term::new(2);

fn ms(millis: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(millis)
}

fn backup() -> Backup {
    Backup::new(TERM, Timing::default(), LogOffset::ZERO, ms(1000))
}

/// The bytes of one console input of `size` bytes in each of `records` windows.
fn log(records: u64, size: usize) -> Bytes {
    let mut out = BytesMut::new();
    let mut encoder = RecordEncoder::new();
    let typed = vec![b'x'; size];
    (1..=records).for_each(|position| {
        let input = Input::Console { bytes: &typed[..] };
        encoder.encode(&mut out, &record(position, true, input));
    });
    out.freeze()
}

fn record(position: u64, closes: bool, input: Input<&[u8]>) -> Record<&[u8]> {
    Record {
        position: Position::new(position),
        closes,
        input,
    }
}

fn beat(sent_at: Instant) -> Heartbeat {
    Heartbeat {
        term: TERM,
        sent_at,
        echo: None,
    }
}

#[test]
fn records_are_acked_when_they_are_held_and_not_when_they_are_executed() {
    let mut backup = backup();
    backup.handle_log_bytes(ms(1001), log(3, 1)).unwrap();
    let ack = backup.poll_ack().unwrap();
    assert_eq!((ack.upto, ack.executed), (LogOffset::new(3), LogOffset::ZERO));
    assert_eq!(backup.poll_ack(), None);
}

/// The bytes of one window: a mark, and an input that enters behind it.
fn marked_window(position: u64) -> [Bytes; 2] {
    let mut encoder = RecordEncoder::new();
    [(false, Input::Mark), (true, Input::Console { bytes: &b"x"[..] })].map(|(closes, input)| {
        let mut out = BytesMut::new();
        encoder.encode(&mut out, &record(position, closes, input));
        out.freeze()
    })
}

#[test]
fn inputs_alone_are_acked_with_the_next_heartbeat_but_the_first_ones_at_once() {
    let mut backup = backup();
    backup.handle_log_bytes(ms(1001), log(3, 1)).unwrap();
    assert!(backup.owes_ack());
    assert!(backup.poll_ack().is_some());
    backup.handle_log_bytes(ms(1002), log(3, 1)).unwrap();
    assert!(!backup.owes_ack());
    assert!(backup.poll_ack().is_some());
}

#[test]
fn a_mark_is_acked_at_once_and_so_is_the_end_of_its_window() {
    let mut backup = backup();
    let [mark, rest] = marked_window(1);
    for piece in [mark, rest] {
        backup.handle_log_bytes(ms(1001), piece).unwrap();
        assert!(backup.owes_ack());
        assert!(backup.poll_ack().is_some());
        assert!(!backup.owes_ack());
    }
}

#[test]
fn a_window_that_fills_up_is_acked_before_it_is_full() {
    let of_records = WindowLimit {
        records: 64,
        ..WindowLimit::default()
    };
    let of_bytes = WindowLimit {
        bytes: 3200,
        ..WindowLimit::default()
    };
    for (limit, size) in [(of_records, 1), (of_bytes, 50)] {
        let mut backup = backup().with_window(limit);
        backup.handle_log_bytes(ms(1001), log(1, size)).unwrap();
        assert!(backup.poll_ack().is_some());
        backup.handle_log_bytes(ms(1001), log(1, size)).unwrap();
        assert!(!backup.owes_ack());
        backup.handle_log_bytes(ms(1001), log(1, size)).unwrap();
        assert!(backup.owes_ack());
    }
}

#[test]
fn a_record_that_came_in_part_is_not_acked() {
    let mut backup = backup();
    let whole = log(1, 100);
    backup.handle_log_bytes(ms(1001), whole.slice(..50)).unwrap();
    assert_eq!(backup.poll_ack(), None);
    backup.handle_log_bytes(ms(1002), whole.slice(50..)).unwrap();
    assert_eq!(backup.poll_ack().unwrap().upto, LogOffset::new(1));
}

#[test]
fn progress_of_the_vm_is_news_too() {
    let mut backup = backup();
    backup.handle_log_bytes(ms(1001), log(2, 1)).unwrap();
    backup.poll_ack().unwrap();
    backup.poll_deliver().unwrap();
    backup.handle_executed(LogOffset::new(1), Position::new(1));
    let ack = backup.poll_ack().unwrap();
    assert_eq!(
        (ack.executed, ack.position),
        (LogOffset::new(1), Position::new(1))
    );
}

#[test]
fn a_backlog_full_of_bytes_is_not_read_into_until_it_is_delivered() {
    let mut backup = backup();
    let size = BACKLOG_BYTES / 8;
    backup.handle_log_bytes(ms(1001), log(8, size)).unwrap();
    assert!(!backup.may_receive());
    backup.poll_deliver().unwrap();
    assert!(backup.may_receive() && !backup.may_resume());
    backup.poll_deliver().unwrap();
    backup.poll_deliver().unwrap();
    assert!(backup.may_resume());
}

#[test]
fn a_flood_of_empty_records_fills_the_backlog_too() {
    let mut backup = backup();
    backup
        .handle_log_bytes(ms(1001), log(BACKLOG_RECORDS as u64, 0))
        .unwrap();
    assert!(!backup.may_receive());
}

#[test]
fn the_newest_heartbeat_is_echoed_once() {
    let mut backup = backup();
    backup.handle_heartbeat(ms(1001), &beat(ms(5))).unwrap();
    backup.handle_heartbeat(ms(1002), &beat(ms(4))).unwrap();
    assert_eq!(backup.poll_heartbeat(ms(1003)).unwrap().echo, Some(ms(5)));
    assert_eq!(backup.poll_heartbeat(ms(1003)), None);
}

#[test]
fn a_heartbeat_of_an_earlier_term_is_not_echoed() {
    let mut backup = backup();
    backup
        .handle_heartbeat(
            ms(1001),
            &Heartbeat {
                term: Term::new(1),
                ..beat(ms(5))
            },
        )
        .unwrap();
    assert_eq!(backup.poll_heartbeat(ms(1002)), None);
}

#[test]
fn a_heartbeat_of_a_term_to_come_ends_the_session() {
    assert!(
        backup()
            .handle_heartbeat(
                ms(1001),
                &Heartbeat {
                    term: Term::new(3),
                    ..beat(ms(5))
                }
            )
            .is_err()
    );
}

#[test]
fn a_primary_that_sends_log_is_not_silent() {
    let mut backup = backup();
    backup.handle_log_bytes(ms(1100), log(1, 1)).unwrap();
    assert_eq!(backup.handle_timeout(ms(1219)), None);
    assert_eq!(
        backup.handle_timeout(ms(1220)),
        Some(PeerLost::Silent(Duration::from_millis(120)))
    );
}

#[test]
fn a_takeover_delivers_what_the_backup_still_held() {
    let mut backup = backup();
    backup.handle_log_bytes(ms(1001), log(2, 1)).unwrap();
    backup.poll_deliver().unwrap();
    let mut takeover = backup.suspect(ms(1200));
    assert_eq!(takeover.poll_deliver().unwrap().position, Position::new(2));
    assert_eq!(takeover.poll_deliver(), None);
    assert_eq!(takeover.end(), LogOffset::new(2));
}

#[test]
#[should_panic(expected = "only delivered records are applied")]
fn a_vm_that_applied_what_it_was_not_given_is_our_bug() {
    backup().handle_executed(LogOffset::new(1), Position::ZERO);
}

#[test]
fn a_backup_that_has_diverged_says_so_and_acks_nothing_until_it_is_healed() {
    let mut backup = backup();
    backup.handle_log_bytes(ms(1001), log(3, 1)).unwrap();
    backup.diverge(Position::new(2), "the registers differ");
    assert_eq!(backup.poll_ack(), None);
    assert!(matches!(backup.poll_confession(), Some(Message::Diverged(_))));
    backup.count(&[7]);
    assert!(matches!(backup.poll_confession(), Some(Message::Census(_))));
    assert_eq!((backup.poll_confession(), backup.poll_ack()), (None, None));

    backup.heal();
    assert_eq!(backup.poll_ack().unwrap().upto, LogOffset::new(3));
}
