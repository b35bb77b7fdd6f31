//! A claim, its verdict and what comes of it. Stories of a whole pair are in `tests/pair.rs`.

use super::*;
use crate::backup::Backup;
use crate::ids::{Incarnation, NodeName};
use crate::session::Timing;
use crate::time::Duration;

fn ms(millis: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(millis)
}

fn rival() -> Holder {
    Holder {
        node: NodeName::new("b").unwrap(),
        incarnation: Incarnation::new(7),
    }
}

/// A backup that heard its primary last at 1000 ms and lost it at 1010 ms, by a broken connection.
fn takeover() -> Takeover {
    Backup::new(Term::new(1), Timing::default(), LogOffset::ZERO, ms(1000)).suspect(ms(1010))
}

const CLAIM: Deed = Deed::Claim {
    expected: Term::new(1),
};
const WON: Verdict = Verdict::Granted { term: Term::new(2) };

#[test]
fn a_backup_that_has_not_replayed_its_log_claims_nothing() {
    assert_eq!(takeover().poll_deed(ms(5000)), None);
}

#[test]
fn a_backup_that_has_diverged_claims_only_if_its_log_heals_it() {
    let mut takeover = takeover();
    takeover.handle_diverged();
    takeover.handle_replayed();
    assert_eq!(takeover.poll_deed(ms(5000)), None);
    assert_eq!(takeover.next_timeout(), Instant::FOREVER);
    takeover.handle_healed();
    assert_eq!(takeover.poll_deed(ms(5000)), Some(CLAIM));
}

#[test]
fn a_backup_that_won_lives_only_when_the_lease_is_over() {
    let mut takeover = takeover();
    takeover.handle_replayed();
    assert_eq!(takeover.poll_deed(ms(1010)), Some(CLAIM));
    takeover.handle_verdict(WON).unwrap();
    assert_eq!(takeover.poll_deed(ms(1112)), None);
    assert_eq!(takeover.next_timeout(), takeover.lease_over());
    assert_eq!(
        takeover.poll_deed(takeover.lease_over()),
        Some(Deed::Promote { term: Term::new(2) })
    );
    assert_eq!(takeover.poll_deed(ms(9000)), None);
}

#[test]
fn a_primary_that_won_goes_on_at_once() {
    let mut claiming = Claiming::new(Term::new(1), ms(1000));
    assert_eq!(claiming.poll_deed(ms(1000)), Some(CLAIM));
    claiming.handle_verdict(WON).unwrap();
    assert_eq!(
        claiming.poll_deed(ms(1000)),
        Some(Deed::Promote { term: Term::new(2) })
    );
}

#[test]
fn a_claim_under_way_is_not_made_twice() {
    let mut claiming = Claiming::new(Term::new(1), ms(1000));
    claiming.poll_deed(ms(1000)).unwrap();
    assert_eq!(claiming.poll_deed(ms(9000)), None);
    assert_eq!(claiming.next_timeout(), Instant::FOREVER);
}

#[test]
fn an_arbiter_that_cannot_be_asked_is_asked_again_after_a_while() {
    let mut claiming = Claiming::new(Term::new(1), ms(1000));
    claiming.poll_deed(ms(1000)).unwrap();
    claiming.handle_claim_failed(ms(1001));
    assert_eq!(claiming.poll_deed(ms(1050)), None);
    assert_eq!(claiming.next_timeout(), ms(1001) + CLAIM_RETRY);
    assert_eq!(claiming.poll_deed(ms(1051)), Some(CLAIM));
}

#[test]
fn the_late_answer_to_a_claim_that_seemed_to_fail_counts() {
    let mut claiming = Claiming::new(Term::new(1), ms(1000));
    claiming.poll_deed(ms(1000)).unwrap();
    claiming.handle_claim_failed(ms(1001));
    claiming.handle_verdict(WON).unwrap();
    assert_eq!(
        claiming.poll_deed(ms(1002)),
        Some(Deed::Promote { term: Term::new(2) })
    );
}

#[test]
fn a_loser_halts_once_and_for_ever() {
    let mut claiming = Claiming::new(Term::new(1), ms(1000));
    claiming.poll_deed(ms(1000)).unwrap();
    claiming
        .handle_verdict(Verdict::Refused {
            term: Term::new(2),
            holder: rival(),
        })
        .unwrap();
    assert_eq!(
        claiming.poll_deed(ms(1001)),
        Some(Deed::Halt {
            by: rival(),
            term: Term::new(2)
        })
    );
    claiming.handle_verdict(WON).unwrap();
    claiming.handle_claim_failed(ms(1002));
    assert_eq!(claiming.poll_deed(ms(9000)), None);
}

#[test]
fn a_loser_halts_although_the_lease_still_runs() {
    let mut takeover = takeover();
    takeover.handle_replayed();
    takeover.poll_deed(ms(1010)).unwrap();
    takeover
        .handle_verdict(Verdict::Refused {
            term: Term::new(2),
            holder: rival(),
        })
        .unwrap();
    assert!(matches!(takeover.poll_deed(ms(1010)), Some(Deed::Halt { .. })));
}

#[test]
fn an_arbiter_that_grants_another_term_is_not_believed() {
    let mut claiming = Claiming::new(Term::new(1), ms(1000));
    claiming.poll_deed(ms(1000)).unwrap();
    assert!(
        claiming
            .handle_verdict(Verdict::Granted { term: Term::new(5) })
            .is_err()
    );
    assert_eq!(claiming.poll_deed(ms(1000)), None);
}
