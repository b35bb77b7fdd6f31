//! The counters that all connections touch. A counter's history is one that a single server could have produced exactly
//! when every reply is a number nobody else got, larger than every number that somebody had before this request was
//! sent, and when the number at the end covers all that were got and no more than were asked for. Pure.

use std::collections::BTreeSet;

/// All that was seen of one shared counter, by all connections together.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedCounter {
    asked: u64,
    got: u64,
    largest: u64,
    /// Numbers below `largest` that nobody got yet: in flight, or given to a connection that broke.
    missing: BTreeSet<u64>,
}

/// A request that is under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    /// The largest number that anybody had when it was sent.
    after: u64,
}

/// What is wrong with a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadNumber {
    /// Somebody else got it, or somebody got a later one before this was even asked for.
    TakenBack,
    /// More than was ever asked for.
    NeverAsked,
}

impl SharedCounter {
    /// Notes that one more increment is about to be sent.
    pub(crate) fn send(&mut self) -> Sent {
        self.asked += 1;
        Sent { after: self.largest }
    }

    /// Judges the number that came back.
    pub(crate) fn receive(&mut self, sent: Sent, number: i64) -> Result<(), BadNumber> {
        let number = u64::try_from(number).map_err(|_| BadNumber::TakenBack)?;
        if number > self.asked {
            return Err(BadNumber::NeverAsked);
        }
        if number <= sent.after {
            return Err(BadNumber::TakenBack);
        }
        if number > self.largest {
            self.missing.extend(self.largest + 1..number);
            self.largest = number;
        } else if !self.missing.remove(&number) {
            return Err(BadNumber::TakenBack);
        }
        self.got += 1;
        Ok(())
    }

    /// Judges the counter's value after everything: how many acknowledged increments are missing from it.
    pub(crate) fn finish(&self, value: u64) -> Result<u64, BadNumber> {
        if value > self.asked {
            return Err(BadNumber::NeverAsked);
        }
        // Numbers that nobody got must be those of requests that nobody heard back from.
        if value.saturating_sub(self.got) > self.asked - self.got {
            return Err(BadNumber::NeverAsked);
        }
        Ok(self.largest.saturating_sub(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_that_overtake_each_other_are_right() {
        let mut counter = SharedCounter::default();
        let (first, second) = (counter.send(), counter.send());
        assert_eq!(counter.receive(second, 2), Ok(()));
        assert_eq!(counter.receive(first, 1), Ok(()));
        assert_eq!(counter.finish(2), Ok(0));
    }

    #[test]
    fn a_number_given_twice_is_found() {
        let mut counter = SharedCounter::default();
        let (first, second) = (counter.send(), counter.send());
        assert_eq!(counter.receive(first, 1), Ok(()));
        assert_eq!(counter.receive(second, 1), Err(BadNumber::TakenBack));
    }

    #[test]
    fn a_counter_that_fell_back_is_found() {
        let mut counter = SharedCounter::default();
        let (_in_flight, second) = (counter.send(), counter.send());
        assert_eq!(counter.receive(second, 2), Ok(()));
        let late = counter.send();
        assert_eq!(counter.receive(late, 1), Err(BadNumber::TakenBack));
    }

    #[test]
    fn a_number_beyond_all_requests_is_found() {
        let mut counter = SharedCounter::default();
        let sent = counter.send();
        assert_eq!(counter.receive(sent, 2), Err(BadNumber::NeverAsked));
        assert_eq!(counter.finish(2), Err(BadNumber::NeverAsked));
    }

    #[test]
    fn an_increment_that_is_missing_at_the_end_is_lost() {
        let mut counter = SharedCounter::default();
        let (first, second) = (counter.send(), counter.send());
        counter.receive(first, 1).unwrap();
        counter.receive(second, 2).unwrap();
        assert_eq!(counter.finish(1), Ok(1));
    }

    #[test]
    fn an_increment_nobody_heard_back_from_may_or_may_not_be_there() {
        let mut counter = SharedCounter::default();
        let (first, _broken) = (counter.send(), counter.send());
        counter.receive(first, 1).unwrap();
        assert_eq!(counter.finish(1), Ok(0));
        assert_eq!(counter.finish(2), Ok(0));
    }
}
