//! Whether a history is one of a single server that never fails: linearizability, key by key.
//!
//! The search is that of Wing and Gong with Lowe's memory of partial orders (crate `todc-utils`). What nobody was
//! answered may have happened at any later time, or never: a state is therefore the set of all values that the key may
//! have, and an answer picks those that it fits.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_demo::campaign::history::{Action, Operation};
use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action as Step, History};
use todc_utils::specifications::Specification;

/// What is to be said of all keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// How many there are.
    pub(super) keys: u64,
    /// Those whose last look lacks something that was acknowledged.
    pub(super) lost: Vec<u32>,
    /// Those that were told of wrongly before that.
    pub(super) wrong: Vec<u32>,
}

/// Judges the history of every key.
pub(super) fn judge(operations: &[Operation]) -> Verdict {
    let mut keys: BTreeMap<u32, Vec<Operation>> = BTreeMap::new();
    for operation in operations {
        keys.entry(operation.key).or_default().push(*operation);
    }
    let mut verdict = Verdict {
        keys: keys.len() as u64,
        ..Verdict::default()
    };
    for (key, mut operations) in keys {
        if is_one_servers(&operations) {
            continue;
        }
        operations.retain(|operation| !operation.is_last_look);
        match is_one_servers(&operations) {
            true => verdict.lost.push(key),
            false => verdict.wrong.push(key),
        }
    }
    verdict
}

/// Whether one server could have told all this of one key.
fn is_one_servers(operations: &[Operation]) -> bool {
    if operations.is_empty() {
        return true;
    }
    // An operation begins before another one ends if both happen at once: that forbids no order.
    let mut steps: Vec<_> = (0..)
        .zip(operations)
        .flat_map(|(number, operation)| {
            [
                (operation.called, 0, number, Step::Call(operation.action)),
                (operation.returned, 1, number, Step::Response(operation.action)),
            ]
        })
        .collect();
    steps.sort_by_key(|(at, order, ..)| (*at, *order));
    let steps = steps.into_iter().map(|(_, _, number, step)| (number, step));
    WGLChecker::<Key>::is_linearizable(History::from_actions(steps.collect()))
}

/// One key of the guest's server.
struct Key;

impl Specification for Key {
    /// Every value that the key may have.
    type State = BTreeSet<Option<i64>>;
    type Operation = Action;

    fn init() -> Self::State {
        BTreeSet::from([None])
    }

    fn apply(action: &Action, state: &Self::State) -> (bool, Self::State) {
        let more = |value: &Option<i64>| Some(value.unwrap_or(0) + 1);
        let after = match *action {
            Action::Set(value) => BTreeSet::from([Some(value)]),
            Action::Get(value) => only(state, |held| *held == value),
            Action::Incr(value) => only(state, |held| more(held) == Some(value))
                .iter()
                .map(more)
                .collect(),
            Action::Del(held_any) => match only(state, |held| held.is_some() == held_any).is_empty() {
                true => BTreeSet::new(),
                false => BTreeSet::from([None]),
            },
            Action::MaybeSet(value) => state | &BTreeSet::from([Some(value)]),
            Action::MaybeIncr => state | &state.iter().map(more).collect(),
            Action::MaybeDel => state | &BTreeSet::from([None]),
        };
        match after.is_empty() {
            true => (false, state.clone()),
            false => (true, after),
        }
    }
}

fn only(state: &BTreeSet<Option<i64>>, fits: impl Fn(&Option<i64>) -> bool) -> BTreeSet<Option<i64>> {
    state.iter().filter(|held| fits(held)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(called: u64, returned: u64, action: Action) -> Operation {
        Operation {
            key: 7,
            called,
            returned,
            action,
            is_last_look: false,
        }
    }

    fn last(called: u64, value: Option<i64>) -> Operation {
        Operation {
            is_last_look: true,
            ..at(called, called + 1, Action::Get(value))
        }
    }

    #[test]
    fn operations_that_meet_may_have_happened_in_any_order() {
        let history = [
            at(0, 10, Action::Set(5)),
            at(1, 9, Action::Incr(1)),
            at(11, 12, Action::Get(Some(5))),
        ];
        assert!(is_one_servers(&history));
    }

    #[test]
    fn what_was_acknowledged_and_is_not_there_is_lost() {
        let history = [
            at(0, 1, Action::Set(5)),
            at(2, 3, Action::Incr(6)),
            last(4, Some(5)),
        ];
        let verdict = judge(&history);
        assert_eq!((verdict.lost, verdict.wrong), (vec![7], vec![]));
    }

    #[test]
    fn a_reply_from_the_past_is_wrong() {
        let history = [
            at(0, 1, Action::Set(5)),
            at(2, 3, Action::Set(6)),
            at(4, 5, Action::Get(Some(5))),
            last(6, Some(6)),
        ];
        let verdict = judge(&history);
        assert_eq!((verdict.lost, verdict.wrong), (vec![], vec![7]));
    }

    #[test]
    fn what_nobody_was_answered_may_happen_late_or_never_but_not_early() {
        let maybe = at(2, u64::MAX, Action::MaybeSet(9));
        let before = at(0, 1, Action::Set(5));
        assert!(is_one_servers(&[before, maybe, last(8, Some(5))]));
        assert!(is_one_servers(&[before, maybe, last(8, Some(9))]));
        let seen_early = at(0, 1, Action::Get(Some(9)));
        assert!(!is_one_servers(&[seen_early, maybe]));
    }
}
