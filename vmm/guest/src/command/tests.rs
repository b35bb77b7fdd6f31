//! Each command's replies, as a client reads them.

use alloc::string::String;
use alloc::vec::Vec;
use std::format;

use super::*;
use crate::db::Memory;
use crate::limits::{HASH_SLICE, LOG_HIGH_MAX, NAME_MAX};
use crate::log::Log;
use crate::resp::{Parser, Spare, Step};
use core::time::Duration;

const PLENTY: Spare = Spare {
    now: 1 << 20,
    ever: 1 << 20,
};

fn db() -> Db {
    let memory = Memory {
        store_max: 1 << 20,
        buffers_max: 1 << 20,
        log_high: LOG_HIGH_MAX,
        free: || usize::MAX,
        reserve: 0,
    };
    Db::new(Store::new(), Log::volatile(), memory, Time::from_nanos(1), || 7)
}

/// Says a line, answers the reply with its line ends shown as `|`.
fn say(db: &mut Db, line: &str) -> String {
    say_as(db, &mut Session::default(), line)
}

/// The same, as a client that said something before.
fn say_as(db: &mut Db, session: &mut Session, line: &str) -> String {
    let mut parser = Parser::new();
    parser.feed(format!("{line}\r\n").as_bytes());
    assert_eq!(parser.step(PLENTY), Ok(Step::Command));
    let mut out = Vec::new();
    execute(db, session, parser.arguments(), &mut out, PLENTY);
    String::from_utf8_lossy(&out).replace("\r\n", "|")
}

/// Says each line on one database and compares every reply.
fn talk<const N: usize>(lines: [(&str, &str); N]) {
    let mut db = db();
    let heard = lines.map(|(line, _)| say(&mut db, line));
    assert_eq!(heard, lines.map(|(_, reply)| String::from(reply)));
}

#[test]
fn values_are_set_and_read() {
    talk([
        ("get a", "$-1|"),
        ("set a 1", "+OK|"),
        ("GET a", "$1|1|"),
        ("set a 2 nx", "$-1|"),
        ("set b 2 xx", "$-1|"),
        ("set a 3 xx get", "$1|1|"),
        ("set c 1 get", "$-1|"),
        ("getset a 4", "$1|3|"),
        ("setnx a 5", ":0|"),
        ("setnx d 5", ":1|"),
        ("mset x 1 y 2", "+OK|"),
        ("mget x nope y", "*3|$1|1|$-1|$1|2|"),
        ("msetnx x 9 z 9", ":0|"),
        ("strlen x", ":1|"),
        ("getdel x", "$1|1|"),
        ("exists x y y", ":2|"),
        ("append y bc", ":3|"),
        ("getrange y 1 -1", "$2|bc|"),
        ("getrange y 5 2", "$0||"),
        ("type y", "+string|"),
        ("type nope", "+none|"),
        ("del y nope", ":1|"),
    ]);
}

#[test]
fn numbers_count_and_overflow() {
    talk([
        ("incr n", ":1|"),
        ("incrby n 41", ":42|"),
        ("decr n", ":41|"),
        ("decrby n 1", ":40|"),
        ("set s abc", "+OK|"),
        ("incr s", "-ERR value is not an integer or out of range|"),
        ("set m 9223372036854775807", "+OK|"),
        ("incr m", "-ERR increment or decrement would overflow|"),
        ("incrby n 1.5", "-ERR value is not an integer or out of range|"),
        ("tsc t", "$1|7|"),
        ("incr t", ":8|"),
        ("decrby n -9223372036854775808", "-ERR decrement would overflow|"),
    ]);
}

#[test]
fn mistakes_get_the_errors_of_redis() {
    talk([
        ("get", "-ERR wrong number of arguments for 'get' command|"),
        ("GET a b", "-ERR wrong number of arguments for 'get' command|"),
        ("mset a 1 b", "-ERR wrong number of arguments for 'mset' command|"),
        (
            "nope a b",
            "-ERR unknown command 'nope', with args beginning with: 'a' 'b' |",
        ),
        ("set a 1 what", "-ERR syntax error|"),
        ("set a 1 nx xx", "-ERR syntax error|"),
        ("set a 1 ex", "-ERR syntax error|"),
        ("set a 1 ex 0", "-ERR invalid expire time in 'set' command|"),
        ("set a 1 ex x", "-ERR value is not an integer or out of range|"),
        ("select 1", "-ERR DB index is out of range|"),
        ("select x", "-ERR value is not an integer or out of range|"),
        ("hello 3", "-NOPROTO unsupported protocol version|"),
        ("client frob", "-ERR unknown subcommand 'frob'. Try client HELP.|"),
        ("flushall now", "-ERR syntax error|"),
        ("scan x", "-ERR invalid cursor|"),
    ]);
}

#[test]
fn clients_are_told_what_they_ask_at_the_start() {
    talk([
        ("ping", "+PONG|"),
        ("ping hi", "$2|hi|"),
        ("echo hi", "$2|hi|"),
        ("select 0", "+OK|"),
        ("config get save", "*2|$4|save|$0||"),
        ("config get appendonly", "*2|$10|appendonly|$3|yes|"),
        ("config get nope", "*0|"),
        ("command docs", "*0|"),
        ("client setinfo lib-name x", "+OK|"),
        ("client getname", "$-1|"),
        ("quit", "+OK|"),
    ]);
}

#[test]
fn a_name_is_short_and_printable_whichever_command_gives_it() {
    let (mut db, mut session) = (db(), Session::default());
    let mut say = |line: &str| say_as(&mut db, &mut session, line);
    let [long, longest] = [NAME_MAX + 1, NAME_MAX].map(|len| "n".repeat(len));
    let refused = "-ERR Client names cannot contain spaces, newlines or special characters.|";
    for name in [&*long, "\"a b\"", "\"a\\n\""] {
        assert_eq!(say(&format!("client setname {name}")), refused);
        assert_eq!(say(&format!("hello 2 setname {name}")), refused);
        assert_eq!(say("client getname"), "$-1|");
    }
    assert!(say(&format!("hello 2 setname {longest}")).starts_with("*14|"));
    assert_eq!(say("client getname"), format!("$64|{longest}|"));
    assert_eq!(say("client setname me"), "+OK|");
    assert_eq!(say("client getname"), "$2|me|");
}

#[test]
fn keys_are_listed_counted_and_cleared() {
    talk([
        ("mset key:1 a key:2 b other c", "+OK|"),
        ("keys key:*", "*2|$5|key:1|$5|key:2|"),
        ("scan 0 match o* count 10", "*2|$1|0|*1|$5|other|"),
        ("dbsize", ":3|"),
        ("flushall", "+OK|"),
        ("dbsize", ":0|"),
    ]);
}

#[test]
fn a_key_goes_away_when_its_time_is_over() {
    let mut db = db();
    say(&mut db, "set a 1 px 500");
    assert_eq!(say(&mut db, "pttl a"), ":500|");
    assert_eq!(say(&mut db, "ttl a"), ":1|");
    db.now = db.now.after(Duration::from_millis(500));
    assert_eq!(say(&mut db, "get a"), "$-1|");
    assert_eq!(say(&mut db, "append a x"), ":1|");
    assert_eq!(say(&mut db, "ttl a"), ":-1|");
    say(&mut db, "expire a 1");
    db.now = db.now.after(Duration::from_secs(2));
    db.sweep();
    assert_eq!(say(&mut db, "dbsize"), ":0|");
}

#[test]
fn a_full_store_refuses_to_grow_but_lets_go() {
    let mut db = db();
    db.memory.store_max = 300;
    assert_eq!(say(&mut db, "set a 1"), "+OK|");
    assert_eq!(say(&mut db, "set b 1"), "+OK|");
    assert!(say(&mut db, "set c 1").starts_with("-OOM"));
    assert_eq!(say(&mut db, "del a"), ":1|");
    assert_eq!(say(&mut db, "set c 1"), "+OK|");
}

#[test]
fn a_byte_is_not_appended_to_a_value_that_finds_no_room_to_move_to() {
    let mut db = db();
    say(&mut db, &format!("set a {}", "x".repeat(60_000)));
    db.memory.free = || 50_000;
    assert!(say(&mut db, "append a y").starts_with("-OOM"));
    assert_eq!(say(&mut db, "strlen a"), ":60000|");
    db.memory.free = || 70_000;
    assert_eq!(say(&mut db, "append a y"), ":60001|");
    db.memory.free = || 10_000;
    assert_eq!(say(&mut db, "append a z"), ":60002|");
}

#[test]
fn a_value_that_grows_counts_with_the_room_that_it_is_given() {
    let mut db = db();
    db.memory.store_max = 60_000 + 4_000;
    say(&mut db, &format!("set a {}", "x".repeat(60_000)));
    assert!(say(&mut db, "append a y").starts_with("-OOM"));
    db.memory.store_max = 60_000 + 8_000;
    assert_eq!(say(&mut db, "append a y"), ":60001|");
}

#[test]
fn the_store_leaves_the_reserve_alone() {
    let mut db = db();
    db.memory.reserve = 1 << 20;
    db.memory.free = || (1 << 20) + 60_000;
    assert!(say(&mut db, &format!("set a {}", "x".repeat(60_000))).starts_with("-OOM"));
    assert_eq!(say(&mut db, &format!("set a {}", "x".repeat(50_000))), "+OK|");
}

#[test]
fn a_reply_without_memory_waits_and_changes_nothing() {
    let mut db = db();
    say(&mut db, &format!("set a {}", "x".repeat(60_000)));
    let mut parser = Parser::new();
    parser.feed(b"getdel a\r\n");
    assert_eq!(parser.step(PLENTY), Ok(Step::Command));
    let mut out = Vec::new();
    let tight = Spare {
        now: 0,
        ever: 1 << 20,
    };
    let outcome = execute(
        &mut db,
        &mut Session::default(),
        parser.arguments(),
        &mut out,
        tight,
    );
    assert_eq!((outcome, out.len()), (Outcome::NoMemory, 0));
    assert_eq!(say(&mut db, "exists a"), ":1|");
}

#[test]
fn a_hash_takes_turns_and_comes_to_the_same_as_one_in_one_go() {
    let (mut db, mut session, mut out) = (db(), Session::default(), Vec::new());
    let mut parser = Parser::new();
    let rounds = 2 * HASH_SLICE + 5;
    parser.feed(format!("hash {rounds}\r\n").as_bytes());
    assert_eq!(parser.step(PLENTY), Ok(Step::Command));
    let mut turn = || {
        let outcome = execute(&mut db, &mut session, parser.arguments(), &mut out, PLENTY);
        (outcome, out.len())
    };

    assert_eq!(turn(), (Outcome::Working, 0));
    assert_eq!(turn(), (Outcome::Working, 0));
    assert_eq!(turn().0, Outcome::Done(Group::ZERO));

    let one_go = say(&mut db, &format!("debug hash {rounds}"));
    assert_eq!(String::from_utf8_lossy(&out).replace("\r\n", "|"), one_go);
}
