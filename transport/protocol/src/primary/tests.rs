//! Acks and leases, one rule at a time. Stories of a whole pair are in `tests/pair.rs`.

use super::*;
use crate::message::{Census, Diverged, Sentence};

const TERM: Term = Term::new(2);

fn ms(millis: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(millis)
}

/// A primary with one mark in each of the first `records` windows, at time 1000 ms.
fn primary(records: u64) -> Primary {
    let mut primary = Primary::new(TERM, Timing::default(), LogOffset::ZERO, ms(1000));
    (1..=records).for_each(|position| {
        primary.append(Position::new(position), true, Input::Mark);
    });
    primary
}

fn ack(upto: u64, executed: u64, position: u64) -> Ack {
    Ack {
        term: TERM,
        upto: LogOffset::new(upto),
        executed: LogOffset::new(executed),
        position: Position::new(position),
    }
}

fn echo(of: Instant) -> Heartbeat {
    Heartbeat {
        term: TERM,
        sent_at: Instant::ZERO,
        echo: Some(of),
    }
}

#[test]
fn acked_rises_and_never_falls() {
    let mut primary = primary(5);
    primary.handle_ack(ms(1001), &ack(4, 1, 2)).unwrap();
    primary.handle_ack(ms(1002), &ack(2, 2, 1)).unwrap();
    assert_eq!(primary.acked(), LogOffset::new(4));
    assert_eq!(primary.executed(), LogOffset::new(2));
    assert_eq!(primary.executed_position(), Position::new(2));
}

#[test]
fn an_ack_of_records_that_were_never_made_ends_the_session() {
    let fault = primary(5).handle_ack(ms(1001), &ack(6, 0, 0)).unwrap_err();
    assert_eq!(
        fault,
        AckFault::BeyondLog {
            claimed: LogOffset::new(6),
            end: LogOffset::new(5)
        }
    );
}

#[test]
fn a_backup_that_executed_what_it_does_not_hold_is_at_fault() {
    assert!(matches!(
        primary(5).handle_ack(ms(1001), &ack(3, 4, 0)),
        Err(AckFault::ExecutedUnheld { .. })
    ));
}

#[test]
fn a_backup_may_stand_in_the_window_after_the_last_record_and_no_further() {
    let mut primary = primary(5);
    assert_eq!(primary.handle_ack(ms(1001), &ack(5, 5, 6)), Ok(()));
    assert!(matches!(
        primary.handle_ack(ms(1001), &ack(5, 5, 7)),
        Err(AckFault::RanAhead { .. })
    ));
}

#[test]
fn an_ack_of_an_earlier_term_is_ignored() {
    let mut primary = primary(5);
    primary
        .handle_ack(
            ms(1001),
            &Ack {
                term: Term::new(1),
                ..ack(900, 0, 0)
            },
        )
        .unwrap();
    assert_eq!(primary.acked(), LogOffset::ZERO);
}

#[test]
fn an_ack_of_a_term_to_come_ends_the_session() {
    let fault = primary(5).handle_ack(
        ms(1001),
        &Ack {
            term: Term::new(3),
            ..ack(1, 0, 0)
        },
    );
    assert!(matches!(fault, Err(AckFault::NewerTerm(_))));
}

#[test]
fn no_lease_before_the_first_echo() {
    assert_eq!(primary(1).lease_until(), Instant::ZERO);
}

#[test]
fn the_lease_counts_from_the_sending_of_what_is_echoed() {
    let mut primary = primary(1);
    primary.poll_heartbeat(ms(1000)).unwrap();
    primary.handle_heartbeat(ms(1015), &echo(ms(1000))).unwrap();
    assert_eq!(primary.lease_until(), ms(1100));
}

#[test]
fn an_old_echo_that_comes_late_shortens_no_lease() {
    let mut primary = primary(1);
    primary.poll_heartbeat(ms(1000)).unwrap();
    primary.poll_heartbeat(ms(1020)).unwrap();
    primary.handle_heartbeat(ms(1021), &echo(ms(1020))).unwrap();
    primary.handle_heartbeat(ms(1022), &echo(ms(1000))).unwrap();
    assert_eq!(primary.lease_until(), ms(1120));
}

#[test]
fn an_echo_of_a_heartbeat_that_was_never_sent_ends_the_session() {
    let mut primary = primary(1);
    assert_eq!(
        primary.handle_heartbeat(ms(1001), &echo(ms(1000))),
        Err(HeartbeatFault::EchoOfNothing)
    );
    primary.poll_heartbeat(ms(1000)).unwrap();
    assert_eq!(
        primary.handle_heartbeat(ms(1001), &echo(ms(1001))),
        Err(HeartbeatFault::EchoOfNothing)
    );
    assert_eq!(primary.lease_until(), Instant::ZERO);
}

#[test]
fn an_echo_of_an_earlier_term_renews_nothing() {
    let mut primary = primary(1);
    primary.poll_heartbeat(ms(1000)).unwrap();
    primary
        .handle_heartbeat(
            ms(1001),
            &Heartbeat {
                term: Term::new(1),
                ..echo(ms(1000))
            },
        )
        .unwrap();
    assert_eq!(primary.lease_until(), Instant::ZERO);
}

#[test]
fn heartbeats_come_at_their_interval() {
    let mut primary = primary(1);
    assert!(primary.poll_heartbeat(ms(1000)).is_some());
    assert!(primary.poll_heartbeat(ms(1019)).is_none());
    assert_eq!(primary.next_timeout(), ms(1020));
    assert!(primary.poll_heartbeat(ms(1020)).is_some());
}

#[test]
fn a_backup_that_is_silent_for_the_timeout_is_lost() {
    let mut primary = primary(1);
    primary.handle_ack(ms(1010), &ack(1, 0, 0)).unwrap();
    assert_eq!(primary.handle_timeout(ms(1129)), None);
    assert_eq!(
        primary.handle_timeout(ms(1130)),
        Some(PeerLost::Silent(Duration::from_millis(120)))
    );
}

#[test]
fn a_full_window_has_no_room_until_an_ack_comes() {
    let mut primary = primary(0).with_window(WindowLimit {
        records: 2,
        bytes: 1 << 20,
    });
    primary.append(Position::new(1), true, Input::Mark);
    primary.append(Position::new(2), true, Input::Mark);
    assert!(!primary.has_room());
    primary.handle_ack(ms(1001), &ack(1, 0, 0)).unwrap();
    assert!(primary.has_room());
}

#[test]
fn a_primary_far_ahead_is_slowed_in_proportion() {
    assert_eq!(primary(SLOW_ABOVE_RECORDS).slowdown(), Duration::ZERO);
    assert_eq!(primary(SLOW_FULL_RECORDS).slowdown(), MAX_SLOWDOWN);
    assert_eq!(primary(SLOW_FULL_RECORDS * 2).slowdown(), MAX_SLOWDOWN);
    assert_eq!(
        primary((SLOW_ABOVE_RECORDS + SLOW_FULL_RECORDS) / 2).slowdown(),
        MAX_SLOWDOWN / 2
    );
}

#[test]
fn what_was_appended_is_sent_once() {
    let mut primary = primary(3);
    assert_eq!(primary.poll_transmit().unwrap().len() as u64, primary.log_bytes());
    assert_eq!(primary.poll_transmit(), None);
}

/// A primary with three records whose backup has said that it diverged and what its one page comes to, at time 1010 ms.
fn primary_of_a_diverged_backup() -> Primary {
    let mut primary = primary(3);
    let found = Diverged {
        term: TERM,
        position: Position::new(2),
        what: Sentence::new("the registers differ"),
    };
    let census = Census {
        term: TERM,
        first: 0,
        is_last: true,
        hashes: vec![7],
    };
    primary.handle_diverged(ms(1010), &found).unwrap();
    primary.handle_census(ms(1010), &census).unwrap();
    primary
}

#[test]
fn a_backup_that_has_diverged_may_ack_nothing_before_the_delta_that_heals_it() {
    let mut primary = primary_of_a_diverged_backup();
    let diverged = Err(AckFault::Diverged(LogOffset::new(3)));
    assert_eq!(primary.handle_ack(ms(1011), &ack(3, 0, 0)), diverged);
    assert_eq!(primary.poll_heal().unwrap().hashes, [7]);
    assert_eq!(primary.handle_ack(ms(1011), &ack(3, 0, 0)), diverged);
    assert_eq!(primary.gate().acked, LogOffset::ZERO);
    assert!(!primary.may_be_acked());

    primary.append(Position::new(3), false, Input::Heal);
    primary.handle_treated();
    assert!(primary.may_be_acked());
    primary.handle_ack(ms(1012), &ack(4, 0, 0)).unwrap();
    assert_eq!(primary.gate().acked, LogOffset::new(4));
}

#[test]
fn a_backup_that_is_not_healed_in_time_is_given_up() {
    let mut primary = primary_of_a_diverged_backup();
    let late = ms(1010) + HEAL_MAX;
    // It lives, and says so.
    primary.handle_ack(late, &ack(0, 0, 0)).unwrap();
    assert_eq!(primary.handle_timeout(late), Some(PeerLost::Unhealed(HEAL_MAX)));
}

#[test]
fn a_backup_that_was_healed_has_all_the_time_again() {
    let mut primary = primary_of_a_diverged_backup();
    primary.poll_heal().unwrap();
    primary.append(Position::new(3), false, Input::Heal);
    primary.handle_treated();
    let late = ms(1010) + HEAL_MAX;
    primary.handle_ack(late, &ack(4, 0, 0)).unwrap();
    assert_eq!(primary.handle_timeout(late), None);
}
