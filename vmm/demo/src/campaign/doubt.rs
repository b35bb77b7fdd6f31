//! What a guest whose disk failed may keep to itself: it does not tell what is not durable. The clients ask before their
//! last look; whether what the guest does tell is right is judged elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{Action, Operation};

/// Keys about which such a guest may be silent.
#[derive(Debug)]
pub(super) struct Doubts {
    /// Keys with a write that nobody acknowledged.
    unsure: BTreeSet<u32>,
    /// Keys that are there, if what was acknowledged is.
    there: BTreeSet<u32>,
    /// Some key was removed, and nobody acknowledged it.
    is_a_removal_unsure: bool,
}

/// What was acknowledged of one key.
#[derive(Clone, Copy, Debug, Default)]
struct Acknowledged {
    /// When the last write that gives it a value was asked.
    put: Option<u64>,
    /// When the last removal was answered.
    removed: Option<u64>,
}

impl Doubts {
    /// Learns from all that was asked and answered.
    pub(super) fn of(operations: &[Operation]) -> Self {
        let mut keys: BTreeMap<u32, Acknowledged> = BTreeMap::new();
        let mut unsure = BTreeSet::new();
        let mut is_a_removal_unsure = false;
        for operation in operations {
            let key = keys.entry(operation.key).or_default();
            match operation.action {
                Action::Set(_) | Action::Incr(_) => key.put = key.put.max(Some(operation.called)),
                Action::Del(_) => key.removed = key.removed.max(Some(operation.returned)),
                Action::MaybeSet(_) | Action::MaybeIncr | Action::MaybeDel => {
                    // It is the key's last: after the disk failed, no write is acknowledged any more.
                    unsure.insert(operation.key);
                    is_a_removal_unsure |= operation.action == Action::MaybeDel;
                }
                Action::Get(_) => {}
            }
        }
        let there = keys.into_iter().filter(|(_, key)| key.put > key.removed);
        Self {
            unsure,
            there: there.map(|(key, _)| key).collect(),
            is_a_removal_unsure,
        }
    }

    /// Whether the guest may refuse to tell of `key`. That a key is not there is as durable as the last removal of any.
    pub(super) fn allow_silence_about(&self, key: u32) -> bool {
        self.unsure.contains(&key) || (self.is_a_removal_unsure && !self.there.contains(&key))
    }
}

#[cfg(test)]
mod tests {
    use super::super::clients::operation as at;
    use super::*;

    fn unanswered(key: u32, called: u64, action: Action) -> Operation {
        at(key, called, u64::MAX, action)
    }

    #[test]
    fn what_was_acknowledged_is_told_whatever_happened_to_other_keys() {
        let history = [
            at(1, 0, 1, Action::Set(5)),
            unanswered(2, 2, Action::MaybeSet(6)),
            unanswered(3, 2, Action::MaybeDel),
        ];
        assert!(!Doubts::of(&history).allow_silence_about(1));
    }

    #[test]
    fn a_key_whose_last_write_was_refused_need_not_be_told() {
        let history = [at(1, 0, 1, Action::Incr(1)), unanswered(1, 2, Action::MaybeIncr)];
        assert!(Doubts::of(&history).allow_silence_about(1));
    }

    #[test]
    fn that_a_key_is_not_there_need_not_be_told_after_a_removal_that_was_refused() {
        let removal = unanswered(3, 4, Action::MaybeDel);
        let removed = [at(1, 0, 1, Action::Set(5)), at(1, 2, 3, Action::Del(true))];
        let all = [&removed[..], &[removal]].concat();

        assert!(!Doubts::of(&removed).allow_silence_about(1));
        assert!(Doubts::of(&all).allow_silence_about(1));
        assert!(Doubts::of(&all).allow_silence_about(2), "nobody ever wrote it");
    }

    #[test]
    fn a_key_that_was_removed_and_written_at_once_may_not_be_there() {
        let removal = unanswered(3, 4, Action::MaybeDel);
        let at_once = [
            at(1, 0, 2, Action::Del(false)),
            at(1, 1, 3, Action::Set(5)),
            removal,
        ];
        let in_order = [
            at(1, 0, 1, Action::Del(false)),
            at(1, 2, 3, Action::Set(5)),
            removal,
        ];

        assert!(Doubts::of(&at_once).allow_silence_about(1));
        assert!(!Doubts::of(&in_order).allow_silence_about(1));
    }
}
