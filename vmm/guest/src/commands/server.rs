//! Commands about the server and the connection. Called through the table in `commands`.

use alloc::string::String;
use core::fmt::Write;

use crate::arguments::number;
use crate::command::{Call, Effect, Refusal, find};
use crate::db::Work;
use crate::glob;
use crate::limits::{HASH_ROUNDS_MAX, HASH_SLICE, NAME_MAX};
use crate::prng;

type Result = core::result::Result<(), Refusal>;

/// The version of Redis whose behaviour clients may expect.
const REDIS_VERSION: &str = "7.0.0";

pub(super) fn ping(call: &mut Call<'_>) -> Result {
    match call.arguments.len() {
        1 => call.reply.simple("PONG"),
        2 => call.reply.bulk(call.arguments.at(1)),
        _ => return Err(Refusal::Arity),
    }
    Ok(())
}

pub(super) fn echo(call: &mut Call<'_>) -> Result {
    call.reply.bulk(call.arguments.at(1));
    Ok(())
}

pub(super) fn quit(call: &mut Call<'_>) -> Result {
    call.session.closing = true;
    call.reply.ok();
    Ok(())
}

pub(super) fn reset(call: &mut Call<'_>) -> Result {
    call.session.name.clear();
    call.reply.simple("RESET");
    Ok(())
}

pub(super) fn select(call: &mut Call<'_>) -> Result {
    match number(call.at(1)).ok_or(Refusal::NotAnInteger)? {
        0 => call.reply.ok(),
        _ => return Err(Refusal::Other("ERR DB index is out of range")),
    }
    Ok(())
}

pub(super) fn auth(_call: &mut Call<'_>) -> Result {
    Err(Refusal::Other("ERR AUTH called without any password configured"))
}

pub(super) fn time(call: &mut Call<'_>) -> Result {
    let micros = call.db.now.as_nanos() / 1000;
    call.reply.array(2);
    for part in [micros / 1_000_000, micros % 1_000_000] {
        let mut text = String::new();
        let _ = write!(text, "{part}");
        call.reply.bulk(text.as_bytes());
    }
    Ok(())
}

pub(super) fn hello(call: &mut Call<'_>) -> Result {
    if call.arguments.len() > 1 {
        match number(call.at(1)) {
            None => {
                return Err(Refusal::Other(
                    "ERR Protocol version is not an integer or out of range",
                ));
            }
            Some(2) => (),
            Some(_) => return Err(Refusal::Other("NOPROTO unsupported protocol version")),
        }
    }
    if call.arguments.len() == 4 && call.is(2, "setname") {
        set_name(call, call.at(3))?;
    } else if call.arguments.len() > 2 {
        return Err(Refusal::Syntax);
    }
    call.reply.array(14);
    call.reply.bulk(b"server");
    call.reply.bulk(b"redis");
    call.reply.bulk(b"version");
    call.reply.bulk(REDIS_VERSION.as_bytes());
    call.reply.bulk(b"proto");
    call.reply.integer(2);
    call.reply.bulk(b"id");
    call.reply.integer(call.session.id as i64);
    call.reply.bulk(b"mode");
    call.reply.bulk(b"standalone");
    call.reply.bulk(b"role");
    call.reply.bulk(b"master");
    call.reply.bulk(b"modules");
    call.reply.array(0);
    Ok(())
}

pub(super) fn client(call: &mut Call<'_>) -> Result {
    let count = call.arguments.len();
    if call.is(1, "setinfo") && count == 4 {
        call.reply.ok();
    } else if call.is(1, "setname") && count == 3 {
        set_name(call, call.at(2))?;
        call.reply.ok();
    } else if call.is(1, "getname") && count == 2 {
        match call.session.name.as_slice() {
            [] => call.reply.null(),
            name => call.reply.bulk(name),
        }
    } else if call.is(1, "id") && count == 2 {
        call.reply.integer(call.session.id as i64);
    } else {
        return Err(Refusal::UnknownSubcommand);
    }
    Ok(())
}

/// What HELLO and CLIENT SETNAME have in common. Nobody counts the memory of a name, so it must be short.
fn set_name(call: &mut Call<'_>, name: &[u8]) -> Result {
    if name.len() > NAME_MAX || name.iter().any(|byte| !(b'!'..=b'~').contains(byte)) {
        return Err(Refusal::Other(
            "ERR Client names cannot contain spaces, newlines or special characters.",
        ));
    }
    call.session.name = name.into();
    Ok(())
}

pub(super) fn config(call: &mut Call<'_>) -> Result {
    if call.is(1, "resetstat") && call.arguments.len() == 2 {
        call.reply.ok();
        return Ok(());
    }
    if call.is(1, "set") {
        return Err(Refusal::Other(
            "ERR CONFIG SET failed - the configuration is fixed at power-on",
        ));
    }
    if !call.is(1, "get") {
        return Err(Refusal::UnknownSubcommand);
    }
    if call.arguments.len() < 3 {
        return Err(Refusal::Arity);
    }
    let mut maxmemory = String::new();
    let _ = write!(maxmemory, "{}", call.db.memory.store_max);
    let parameters = [
        ("save", ""),
        ("appendonly", "yes"),
        ("appendfsync", "always"),
        ("databases", "1"),
        ("maxmemory", &*maxmemory),
        ("maxmemory-policy", "noeviction"),
    ];
    let arguments = call.arguments;
    let is_asked = |name: &str| {
        arguments
            .from(2)
            .any(|pattern| glob::matches(&pattern.to_ascii_lowercase(), name.as_bytes()))
    };
    call.reply
        .array(2 * parameters.iter().filter(|(name, _)| is_asked(name)).count());
    for (name, value) in parameters.iter().filter(|(name, _)| is_asked(name)) {
        call.reply.bulk(name.as_bytes());
        call.reply.bulk(value.as_bytes());
    }
    Ok(())
}

pub(super) fn command(call: &mut Call<'_>) -> Result {
    let all = super::all;
    if call.arguments.len() == 1 {
        call.reply.array(all().count());
        all().for_each(|spec| describe(call, spec.name));
    } else if call.is(1, "count") {
        call.reply.count(all().count());
    } else if call.is(1, "docs") {
        call.reply.array(0);
    } else if call.is(1, "list") {
        call.reply.array(all().count());
        all().for_each(|spec| call.reply.bulk(spec.name.as_bytes()));
    } else if call.is(1, "info") {
        call.reply.array(call.arguments.len() - 2);
        for name in call.arguments.from(2) {
            match find(name) {
                Some(spec) => describe(call, spec.name),
                None => call.reply.null(),
            }
        }
    } else {
        return Err(Refusal::UnknownSubcommand);
    }
    Ok(())
}

/// Name, arity, flags, and where the keys are, as Redis lists a command.
fn describe(call: &mut Call<'_>, name: &str) {
    let Some(spec) = find(name.as_bytes()) else { return };
    call.reply.array(6);
    call.reply.bulk(spec.name.as_bytes());
    call.reply.integer(i64::from(spec.arity));
    call.reply.array(1);
    call.reply.simple(if spec.effect == Effect::Reads {
        "readonly"
    } else {
        "write"
    });
    [0, 0, 0].into_iter().for_each(|place| call.reply.integer(place));
}

pub(super) fn info(call: &mut Call<'_>) -> Result {
    let db = &*call.db;
    let uptime = db.now.since(db.started).as_secs();
    let (log_bytes, log_size) = db.log.usage();
    let mut text = String::new();
    let _ = write!(
        text,
        "# Server\r\nredis_version:{REDIS_VERSION}\r\nredis_mode:standalone\r\nserver_name:lockstep-guest\r\n\
         os:none\r\narch_bits:64\r\nuptime_in_seconds:{uptime}\r\n\r\n\
         # Clients\r\nconnected_clients:{}\r\n\r\n\
         # Memory\r\nused_memory:{}\r\nmaxmemory:{}\r\nheap_free:{}\r\nmaxmemory_policy:noeviction\r\n\r\n\
         # Persistence\r\nloading:0\r\naof_enabled:1\r\naof_last_write_status:{}\r\nlog_bytes:{log_bytes}\r\n\
         log_size:{log_size}\r\nlog_compactions:{}\r\n\r\n\
         # Stats\r\ntotal_connections_received:{}\r\ntotal_commands_processed:{}\r\n\r\n\
         # Replication\r\nrole:master\r\nconnected_slaves:0\r\n\r\n# Keyspace\r\n",
        db.clients,
        db.store.memory(),
        db.memory.store_max,
        (db.memory.free)(),
        if db.log.readiness() == crate::log::Readiness::Failed {
            "err"
        } else {
            "ok"
        },
        db.log.compactions(),
        db.accepted,
        db.executed,
    );
    if !db.store.is_empty() {
        let _ = write!(
            text,
            "db0:keys={},expires={},avg_ttl=0\r\n",
            db.store.len(),
            db.store.expiring()
        );
    }
    call.reply.bulk(text.as_bytes());
    Ok(())
}

/// `DEBUG HASH n`: works for a while without a single exit and without a look at anything else.
pub(super) fn debug(call: &mut Call<'_>) -> Result {
    if !call.is(1, "hash") || call.arguments.len() != 3 {
        return Err(Refusal::UnknownSubcommand);
    }
    let rounds = hash_rounds(call.at(2))?;
    write_hash(call, hash_on(0, rounds));
    Ok(())
}

/// `HASH n`: works for a while as a compute-bound guest would, without a single exit unless another client is served.
pub(super) fn hash(call: &mut Call<'_>) -> Result {
    let begun = call.session.work.take();
    let work = match begun {
        Some(work) => work,
        None => Work {
            left: hash_rounds(call.at(1))?,
            value: 0,
        },
    };
    let slice = work.left.min(HASH_SLICE);
    let (left, value) = (work.left - slice, hash_on(work.value, slice));
    if left > 0 {
        call.session.work = Some(Work { left, value });
    } else {
        write_hash(call, value);
    }
    Ok(())
}

fn hash_rounds(text: &[u8]) -> core::result::Result<u64, Refusal> {
    let rounds = number(text).and_then(|rounds| u64::try_from(rounds).ok());
    let rounds = rounds.ok_or(Refusal::NotAnInteger)?;
    if rounds > HASH_ROUNDS_MAX {
        return Err(Refusal::Other("ERR too many rounds"));
    }
    Ok(rounds)
}

fn hash_on(value: u64, rounds: u64) -> u64 {
    (0..rounds).fold(value, |hash, _| prng::mix(hash))
}

fn write_hash(call: &mut Call<'_>, hash: u64) {
    let mut text = String::new();
    let _ = write!(text, "{hash:016x}");
    call.reply.bulk(text.as_bytes());
}

pub(super) fn shutdown(call: &mut Call<'_>) -> Result {
    let known = call.arguments.from(1).all(|word| {
        [&b"nosave"[..], b"save", b"now", b"force"]
            .iter()
            .any(|known| word.eq_ignore_ascii_case(known))
    });
    if !known {
        return Err(Refusal::Syntax);
    }
    // No reply: the client sees the end of the connection, as with Redis.
    call.db.shutdown = Some(call.db.now);
    call.session.closing = true;
    Ok(())
}
