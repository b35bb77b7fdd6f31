//! Histories that a never-failing server could have produced, and those that it could not.

use super::super::command::{Value, counter_name, key_name};
use super::*;

/// A server that does what it is told, unless a test makes it forget.
struct History {
    checker: Checker,
    counters: SharedCounters,
    server: Model,
}

const OWNER: u16 = 4;

impl History {
    fn new() -> Self {
        Self {
            checker: Checker::new(OWNER),
            counters: Default::default(),
            server: Model::new(OWNER),
        }
    }

    /// Sends `command`, lets the server execute it and returns the verdict on its reply.
    fn ask(&mut self, command: Command) -> Result<(), Wrong> {
        let reply = self.server.execute(&command).expect("not a shared counter");
        self.ask_and_get(command, &reply)
    }

    fn ask_and_get(&mut self, command: Command, reply: &Reply) -> Result<(), Wrong> {
        self.checker.send(&mut self.counters, command);
        self.checker.receive(&mut self.counters, reply)
    }

    /// What the server has in the end.
    fn finish(&self) -> Losses {
        let found = self.checker.keys().into_iter().map(|key| {
            let value = self.server.value(&key).map(<[u8]>::to_vec);
            (key, value)
        });
        self.checker.finish(&found.collect())
    }
}

fn value(number: u32) -> Value {
    Value {
        owner: OWNER,
        number,
        size: 40,
    }
}

fn set(key: u16, number: u32) -> Command {
    Command::Set {
        key,
        value: value(number),
    }
}

fn ok() -> Reply {
    Reply::Simple(b"OK".to_vec())
}

#[test]
fn the_history_of_an_honest_server_is_right() {
    let mut history = History::new();
    history.ask(set(1, 1)).unwrap();
    history.ask(Command::Get { key: 1 }).unwrap();
    history
        .ask(Command::Append {
            key: 1,
            value: value(2),
        })
        .unwrap();
    history
        .ask(Command::MSet {
            pairs: vec![(2, value(3)), (3, value(4))],
        })
        .unwrap();
    history.ask(Command::Del { key: 2 }).unwrap();
    history.ask(Command::MGet { keys: vec![1, 2, 3] }).unwrap();
    history.ask(Command::Incr { counter: 0 }).unwrap();
    history.ask(Command::Ping).unwrap();
    assert_eq!(history.finish(), Losses::default());
}

#[test]
fn a_stale_read_is_found() {
    let mut history = History::new();
    history.ask(set(1, 1)).unwrap();
    history.ask(set(1, 2)).unwrap();
    let stale = Reply::Bulk(Some(value(1).bytes()));
    let wrong = history.ask_and_get(Command::Get { key: 1 }, &stale).unwrap_err();
    assert!(
        wrong.story.starts_with("GET c4:k1: right is \"4.2:"),
        "{}",
        wrong.story
    );
}

#[test]
fn a_stale_value_inside_an_mget_is_found() {
    let mut history = History::new();
    history.ask(set(1, 1)).unwrap();
    let stale = Reply::Array(vec![Reply::Bulk(None)]);
    assert!(
        history
            .ask_and_get(Command::MGet { keys: vec![1] }, &stale)
            .is_err()
    );
}

#[test]
fn a_write_that_was_acknowledged_and_is_gone_is_lost() {
    let mut history = History::new();
    history.ask(set(1, 1)).unwrap();
    history.ask_and_get(set(1, 2), &ok()).unwrap();
    assert_eq!(history.finish(), Losses { lost: 1, wrong: 0 });
}

#[test]
fn a_deletion_that_came_undone_is_lost() {
    let mut history = History::new();
    history.ask(set(1, 1)).unwrap();
    history
        .ask_and_get(Command::Del { key: 1 }, &Reply::Integer(1))
        .unwrap();
    assert_eq!(history.finish(), Losses { lost: 1, wrong: 0 });
}

#[test]
fn half_an_mset_is_lost() {
    let mut history = History::new();
    history
        .ask_and_get(
            Command::MSet {
                pairs: vec![(1, value(1)), (2, value(2))],
            },
            &ok(),
        )
        .unwrap();
    history.server.execute(&set(1, 1));
    assert_eq!(history.finish(), Losses { lost: 1, wrong: 0 });
}

#[test]
fn an_increment_that_was_executed_twice_is_found() {
    let mut history = History::new();
    history.ask(Command::Incr { counter: 0 }).unwrap();
    history.server.execute(&Command::Incr { counter: 0 });
    assert!(history.ask(Command::Incr { counter: 0 }).is_err());
}

#[test]
fn an_append_that_was_executed_twice_is_found() {
    let mut history = History::new();
    let append = Command::Append {
        key: 1,
        value: value(1),
    };
    history.server.execute(&append);
    assert!(history.ask(append).is_err());
    assert_eq!(history.finish(), Losses { lost: 0, wrong: 1 });
}

#[test]
fn a_shared_number_that_two_connections_got_is_found() {
    let mut one = History::new();
    let mut two = Checker::new(9);
    let incr = Command::IncrShared { counter: 1 };
    two.send(&mut one.counters, incr.clone());
    one.ask_and_get(incr, &Reply::Integer(1)).unwrap();
    assert!(two.receive(&mut one.counters, &Reply::Integer(1)).is_err());
}

#[test]
fn an_error_reply_is_wrong() {
    let mut history = History::new();
    assert!(
        history
            .ask_and_get(Command::Ping, &Reply::Error(b"ERR".to_vec()))
            .is_err()
    );
    assert!(
        history
            .ask_and_get(Command::IncrShared { counter: 0 }, &Reply::Error(b"ERR".to_vec()))
            .is_err()
    );
}

#[test]
fn a_reply_without_a_request_is_wrong() {
    let mut history = History::new();
    assert!(history.checker.receive(&mut history.counters, &ok()).is_err());
}

#[test]
fn a_reply_to_the_wrong_request_is_wrong() {
    let mut history = History::new();
    history.checker.send(&mut history.counters, set(1, 1));
    history
        .checker
        .send(&mut history.counters, Command::Incr { counter: 0 });
    assert!(
        history
            .checker
            .receive(&mut history.counters, &Reply::Integer(1))
            .is_err()
    );
}

#[test]
fn requests_that_nobody_answered_may_have_been_executed_up_to_any_point() {
    let mut history = History::new();
    history.ask(set(1, 1)).unwrap();
    history.checker.send(&mut history.counters, set(1, 2));
    history
        .checker
        .send(&mut history.counters, Command::Incr { counter: 0 });
    assert_eq!(history.finish(), Losses::default());
    history.server.execute(&set(1, 2));
    assert_eq!(history.finish(), Losses::default());
    history.server.execute(&Command::Incr { counter: 0 });
    assert_eq!(history.finish(), Losses::default());
}

#[test]
fn a_later_request_executed_without_an_earlier_one_is_found() {
    let mut history = History::new();
    history.checker.send(&mut history.counters, set(1, 1));
    history
        .checker
        .send(&mut history.counters, Command::Incr { counter: 0 });
    history.server.execute(&Command::Incr { counter: 0 });
    assert_ne!(history.finish(), Losses::default());
}

#[test]
fn keys_of_open_requests_are_read_back_too() {
    let mut history = History::new();
    history.checker.send(&mut history.counters, set(7, 1));
    history
        .checker
        .send(&mut history.counters, Command::Incr { counter: 2 });
    assert_eq!(
        history.checker.keys(),
        [key_name(OWNER, 7), counter_name(OWNER, 2)]
    );
}
