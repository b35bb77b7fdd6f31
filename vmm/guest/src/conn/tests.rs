//! A client's replies and when they leave.

use alloc::string::String;
use alloc::vec::Vec;

use super::*;
use crate::db::Memory;
use crate::disk::{Disk, Done, Request, SECTOR_BYTES, Tag};
use crate::limits::LOG_HIGH_MAX;
use crate::log;
use crate::store::Store;
use crate::units::Time;

/// A disk of zeros that answers only when told to.
#[derive(Default)]
struct Slow {
    waiting: Vec<Done>,
    done: Vec<Done>,
    fails: bool,
    is_prompt: bool,
}

impl Slow {
    fn answer(&mut self) {
        self.done.append(&mut self.waiting);
    }
}

impl Disk for Slow {
    fn sectors(&self) -> u64 {
        4096
    }

    fn needs_flush(&self) -> bool {
        false
    }

    fn flushes_in_order(&self) -> bool {
        true
    }

    fn submit(&mut self, tag: Tag, request: Request) -> Result<(), Request> {
        let bytes = match request {
            Request::Read { bytes, .. } | Request::Write { bytes, .. } => bytes,
            Request::Flush => Vec::new(),
        };
        assert!(bytes.len().is_multiple_of(SECTOR_BYTES));
        let result = if self.fails {
            Err(crate::disk::DiskError)
        } else {
            Ok(())
        };
        self.waiting.push(Done { tag, result, bytes });
        Ok(())
    }

    fn kick(&mut self) {}

    fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    fn poll(&mut self) -> Option<Done> {
        if self.is_prompt {
            self.answer();
        }
        self.done.pop()
    }

    fn wait(&mut self) {}
}

struct World {
    disk: Slow,
    db: Db,
}

impl World {
    fn new() -> Self {
        let mut disk = Slow {
            is_prompt: true,
            ..Slow::default()
        };
        let mut store = Store::new();
        let log = log::open(&mut disk, &mut store, 1, Time::ZERO).unwrap();
        disk.is_prompt = false;
        let memory = Memory {
            store_max: 1 << 20,
            buffers_max: 1 << 20,
            log_high: LOG_HIGH_MAX,
            free: || usize::MAX,
            reserve: 0,
        };
        World {
            disk,
            db: Db::new(store, log, memory, Time::ZERO, || 7),
        }
    }

    fn say(&mut self, conn: &mut Conn, line: &[u8]) -> Stall {
        conn.feed(line);
        conn.execute(&mut self.db, 1 << 20)
    }

    fn round(&mut self) {
        self.db.log.drive(&mut self.disk, &self.db.store, Time::ZERO);
    }

    fn hear(&mut self, conn: &mut Conn) -> Vec<u8> {
        conn.release(self.db.log.durable());
        let heard = conn.sendable().to_vec();
        conn.handle_sent(heard.len());
        heard
    }
}

#[test]
fn a_write_is_acknowledged_only_when_it_is_durable() {
    let (mut world, mut conn) = (World::new(), Conn::new(1));
    world.say(&mut conn, b"set a 1\r\nget b\r\n");
    world.round();
    assert_eq!(world.hear(&mut conn), b"");
    world.disk.answer();
    world.round();
    assert_eq!(world.hear(&mut conn), b"+OK\r\n$-1\r\n");
}

#[test]
fn another_client_does_not_see_a_value_before_it_is_durable() {
    let (mut world, mut writer, mut reader) = (World::new(), Conn::new(1), Conn::new(2));
    world.say(&mut writer, b"set a 1\r\n");
    world.say(&mut reader, b"get a\r\n");
    world.round();
    assert_eq!(world.hear(&mut reader), b"");
    world.disk.answer();
    world.round();
    assert_eq!(world.hear(&mut reader), b"$1\r\n1\r\n");
}

#[test]
fn a_client_that_reads_something_else_does_not_wait() {
    let (mut world, mut writer, mut reader) = (World::new(), Conn::new(1), Conn::new(2));
    world.say(&mut writer, b"set a 1\r\n");
    world.say(&mut reader, b"get b\r\nping\r\n");
    world.round();
    assert_eq!(world.hear(&mut reader), b"$-1\r\n+PONG\r\n");
}

#[test]
fn a_deletion_is_not_told_before_it_is_durable() {
    let (mut world, mut writer, mut reader) = (World::new(), Conn::new(1), Conn::new(2));
    world.say(&mut writer, b"set a 1\r\n");
    world.round();
    world.disk.answer();
    world.round();
    world.say(&mut writer, b"del a\r\n");
    world.say(&mut reader, b"get a\r\n");
    world.round();
    assert_eq!(world.hear(&mut reader), b"");
}

#[test]
fn a_failed_disk_turns_every_unfulfilled_reply_into_an_error() {
    let (mut world, mut conn) = (World::new(), Conn::new(1));
    world.disk.fails = true;
    world.say(&mut conn, b"ping\r\nset a 1\r\nget a\r\n");
    world.round();
    world.disk.answer();
    world.round();
    conn.fail(world.db.log.durable());
    let heard = world.hear(&mut conn);
    let lines: Vec<&[u8]> = heard.split(|&byte| byte == b'\n').collect();
    assert_eq!(lines[0], b"+PONG\r");
    assert!(lines[1].starts_with(b"-ERR disk failed") && lines[2].starts_with(b"-ERR disk failed"));
    world.say(&mut conn, b"set a 2\r\n");
    assert!(world.hear(&mut conn).starts_with(b"-ERR disk failed"));
}

#[test]
fn a_protocol_error_is_said_and_ends_the_connection() {
    let (mut world, mut conn) = (World::new(), Conn::new(1));
    assert_eq!(world.say(&mut conn, b"ping\r\n*1\r\n!\r\n"), Stall::Closing);
    assert_eq!(
        world.hear(&mut conn),
        b"+PONG\r\n-ERR Protocol error: expected '$', got '!'\r\n"
    );
    assert!(conn.is_finished() && conn.room() == 0);
}

#[test]
fn a_client_that_does_not_read_is_not_served_further() {
    let (mut world, mut conn) = (World::new(), Conn::new(1));
    let echo = [&b"echo "[..], &[b'x'; 1000], b"\r\n"].concat();
    while world.say(&mut conn, &echo) == Stall::Hungry {}
    assert_eq!(conn.room(), 0);
    world.hear(&mut conn);
    assert!(conn.room() > 0);
}

#[test]
fn a_full_disk_refuses_writes_but_lets_read_and_delete() {
    let (mut world, mut conn) = (World::new(), Conn::new(1));
    world.db.memory.store_max = 16 << 20;
    world.disk.is_prompt = true;
    let mut heard = Vec::new();
    for key in 0..40 {
        let set = [
            alloc::format!("set key{key} ").as_bytes(),
            &[b'x'; 50_000],
            b"\r\n",
        ]
        .concat();
        for piece in set.chunks(10_000) {
            world.say(&mut conn, piece);
        }
        // A compaction takes several rounds.
        (0..30).for_each(|_| world.round());
        world.say(&mut conn, b"");
        (0..30).for_each(|_| world.round());
        heard.extend(world.hear(&mut conn));
    }
    let heard = String::from_utf8_lossy(&heard);
    let stored = heard.matches("+OK").count();
    assert!((15..30).contains(&stored), "{stored}");
    assert_eq!(heard.matches("-ERR disk full").count(), 40 - stored);

    world.say(&mut conn, b"strlen key0\r\ndel key0 key1\r\nset key0 again\r\n");
    (0..30).for_each(|_| world.round());
    assert_eq!(world.hear(&mut conn), b":50000\r\n:2\r\n+OK\r\n");
}

#[test]
fn nothing_is_deleted_or_swept_that_the_log_has_no_memory_for() {
    let (mut world, mut conn) = (World::new(), Conn::new(1));
    world.disk.is_prompt = true;
    world.say(&mut conn, b"set a 1\r\nset b 1 px 1\r\n");
    (0..2).for_each(|_| world.round());
    assert_eq!(world.hear(&mut conn), b"+OK\r\n+OK\r\n");

    world.db.memory.free = || 0;
    world.db.now = Time::from_nanos(1_000_000_000);
    world.db.sweep();
    world.say(&mut conn, b"del a\r\nexists a\r\ndbsize\r\n");
    let refusal = "-OOM command not allowed when used memory > 'maxmemory'.\r\n:1\r\n:2\r\n";
    assert_eq!(String::from_utf8_lossy(&world.hear(&mut conn)), refusal);

    world.db.memory.free = || usize::MAX;
    world.db.sweep();
    world.say(&mut conn, b"del a\r\ndbsize\r\n");
    (0..2).for_each(|_| world.round());
    assert_eq!(world.hear(&mut conn), b":1\r\n:0\r\n");
}

#[test]
fn long_keys_whose_time_is_over_are_swept_in_several_groups() {
    let (mut world, mut conn) = (World::new(), Conn::new(1));
    world.db.memory.store_max = 16 << 20;
    world.disk.is_prompt = true;
    for key in 0..16 {
        let set = [
            alloc::format!("set {key:02}").as_bytes(),
            &[b'x'; 50_000],
            b" 1 px 1\r\n",
        ]
        .concat();
        for piece in set.chunks(10_000) {
            world.say(&mut conn, piece);
        }
        (0..30).for_each(|_| world.round());
    }
    world.db.now = Time::from_nanos(1_000_000_000);
    world.db.sweep();
    assert_eq!(world.db.store.len(), 5, "half a MiB of keys is a group");
    assert_eq!(world.db.log.readiness(), log::Readiness::Later);

    (0..30).for_each(|_| world.round());
    world.db.sweep();
    assert_eq!(world.db.store.len(), 0);
}

#[test]
fn a_reply_finds_no_memory_that_its_own_command_has_taken() {
    let (mut world, mut conn) = (World::new(), Conn::new(1));
    let echo = [&b"*2\r\n$4\r\necho\r\n$300000\r\n"[..], &[b'x'; 300_000], b"\r\n"].concat();
    world.db.memory.buffers_max = 500_000;
    for piece in echo.chunks(10_000) {
        conn.feed(piece);
        conn.execute(&mut world.db, 500_000);
    }
    assert_eq!(
        String::from_utf8_lossy(&world.hear(&mut conn)),
        "-OOM the reply is longer than the memory left for it\r\n"
    );
    world.db.memory.buffers_max = 1 << 20;
    for piece in echo.chunks(10_000) {
        world.say(&mut conn, piece);
    }
    assert!(world.hear(&mut conn).starts_with(b"$300000\r\n"));
}
