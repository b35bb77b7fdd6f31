//! One window, one delta: what enters, what waits, what is refused.

use super::*;

const HERE: Position = Position::new(7);
const PIECE: Bytes = Bytes::from_static(b"piece");

fn follower() -> Follower {
    Follower::new(2 * PIECE.len())
}

fn record(position: u64, closes: bool, input: Input<Bytes>) -> Record {
    Record {
        position: Position::new(position),
        closes,
        input,
    }
}

fn typed(position: u64, closes: bool) -> Record {
    let bytes = Bytes::from_static(b"x");
    record(position, closes, Input::Console { bytes })
}

fn pages(position: u64) -> Record {
    record(position, false, Input::DeltaPages { bytes: PIECE })
}

fn end(position: u64) -> Record {
    record(position, false, Input::DeltaEnd { bytes: PIECE })
}

#[test]
fn the_vm_stays_in_a_window_that_is_closed_until_a_later_one_is_heard_of() {
    let mut follower = follower();
    assert_eq!(
        follower.handle_record(typed(7, true), HERE, false),
        Ok(Admitted::Enters(typed(7, true)))
    );
    assert_eq!(
        follower.handle_record(typed(9, true), HERE, false),
        Ok(Admitted::Later)
    );
    assert_eq!(follower.poll_kept(), Some(typed(9, true)));
    assert_eq!(follower.poll_kept(), None);
}

#[test]
fn a_delta_enters_when_it_is_whole_and_inputs_may_follow_it() {
    let mut follower = follower();
    let mut handle = |record| follower.handle_record(record, HERE, false);
    assert_eq!(handle(pages(7)), Ok(Admitted::Kept));
    assert_eq!(handle(pages(7)), Ok(Admitted::Kept));
    assert_eq!(
        handle(end(7)),
        Ok(Admitted::Delta {
            pages: vec![PIECE, PIECE],
            end: PIECE,
            heals: false
        })
    );
    assert_eq!(handle(typed(7, true)), Ok(Admitted::Enters(typed(7, true))));
}

#[test]
fn a_delta_of_a_later_position_waits_until_the_vm_has_come_there() {
    let mut follower = follower();
    assert_eq!(follower.handle_record(pages(8), HERE, false), Ok(Admitted::Later));
    let kept = follower.poll_kept().unwrap();
    assert_eq!(
        follower.handle_record(kept, HERE.next(), false),
        Ok(Admitted::Kept)
    );
}

#[test]
fn a_delta_that_breaks_off_is_refused() {
    let mut first = follower();
    first.handle_record(pages(7), HERE, false).unwrap();
    let mut second = first.clone();
    let broken = Err(Misplaced::BrokenDelta(HERE));
    assert_eq!(first.handle_record(typed(7, true), HERE, false), broken);
    assert_eq!(second.handle_record(end(8), HERE, false), broken);
}

#[test]
fn a_delta_that_is_larger_than_the_machine_is_refused() {
    let mut follower = follower();
    follower.handle_record(pages(7), HERE, false).unwrap();
    follower.handle_record(pages(7), HERE, false).unwrap();
    assert_eq!(
        follower.handle_record(pages(7), HERE, false),
        Err(Misplaced::LargeDelta(HERE))
    );
}

#[test]
fn a_delta_in_more_pieces_than_the_machine_can_need_is_refused_though_they_are_empty() {
    let empty = || record(7, false, Input::DeltaPages { bytes: Bytes::new() });
    let kept_of = |delta_bytes_max| {
        let mut follower = Follower::new(delta_bytes_max);
        let mut handled = std::iter::repeat_with(|| follower.handle_record(empty(), HERE, false));
        let kept = handled
            .by_ref()
            .take(10_000)
            .take_while(|outcome| *outcome == Ok(Admitted::Kept))
            .count();
        (kept, handled.next())
    };
    let refused = Some(Err(Misplaced::LargeDelta(HERE)));
    assert_eq!(kept_of(0), (DELTA_PIECES_FEW, refused.clone()));
    assert_eq!(kept_of(1000 * size_of::<Bytes>()), (1000, refused));
}

#[test]
fn a_vm_that_has_diverged_takes_nothing_but_a_delta_that_heals() {
    let mut follower = follower();
    follower.handle_record(pages(7), HERE, false).unwrap();
    follower.stray();
    let mut handle = |record| follower.handle_record(record, HERE, false);
    assert_eq!(handle(typed(7, true)), Ok(Admitted::Dropped));
    assert_eq!(handle(pages(8)), Ok(Admitted::Dropped));
    assert_eq!(handle(end(8)), Ok(Admitted::Dropped));
    assert_eq!(handle(record(9, false, Input::Heal)), Ok(Admitted::Kept));
    assert_eq!(handle(pages(9)), Ok(Admitted::Kept));
    assert_eq!(
        handle(end(9)),
        Ok(Admitted::Delta {
            pages: vec![PIECE],
            end: PIECE,
            heals: true
        })
    );
    assert!(!follower.is_astray());
}

#[test]
fn a_delta_that_heals_is_refused_by_a_vm_that_has_not_diverged() {
    let heal = record(7, false, Input::Heal);
    assert_eq!(
        follower().handle_record(heal, HERE, false),
        Err(Misplaced::Unasked(HERE))
    );
}

#[test]
fn a_record_of_a_window_that_was_passed_is_refused() {
    let passed = Misplaced::Passed {
        at: HERE,
        record: Position::new(6),
    };
    assert_eq!(follower().handle_record(typed(6, true), HERE, false), Err(passed));
}

#[test]
fn a_mark_where_our_guest_called_for_nothing_is_refused() {
    let mark = || record(7, true, Input::Mark);
    let mut follower = follower();
    assert_eq!(
        follower.handle_record(mark(), HERE, false),
        Err(Misplaced::NoOutput(HERE))
    );
    assert_eq!(
        follower.handle_record(mark(), HERE, true),
        Ok(Admitted::Enters(mark()))
    );
}
