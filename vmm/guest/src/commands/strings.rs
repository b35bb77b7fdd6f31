//! Commands on values. Called through the table in `commands`.

use alloc::string::String;
use core::fmt::Write;
use core::time::Duration;

use crate::arguments::number;
use crate::command::{Call, Refusal, look};
use crate::limits::{KEY_MAX, VALUE_MAX};
use crate::store::op::Op;
use crate::units::Time;

type Result = core::result::Result<(), Refusal>;

pub(super) fn get(call: &mut Call<'_>) -> Result {
    write_value(call, call.at(1)).map(drop)
}

pub(super) fn mget(call: &mut Call<'_>) -> Result {
    call.reply.array(call.arguments.len() - 1);
    call.arguments
        .from(1)
        .try_for_each(|key| write_value(call, key).map(drop))
}

/// Writes a value; answers whether there is one. Stops the command when there is no room for it.
fn write_value(call: &mut Call<'_>, key: &[u8]) -> core::result::Result<bool, Refusal> {
    let entry = look(&call.db.store, key, call.db.now, &mut call.needs);
    match entry {
        Some(entry) => call.reply.bulk(entry.value()),
        None => call.reply.null(),
    }
    if call.reply.is_too_long() {
        Err(Refusal::LongReply)
    } else {
        Ok(entry.is_some())
    }
}

pub(super) fn strlen(call: &mut Call<'_>) -> Result {
    let entry = look(&call.db.store, call.at(1), call.db.now, &mut call.needs);
    call.reply.count(entry.map_or(0, |entry| entry.value().len()));
    Ok(())
}

pub(super) fn getrange(call: &mut Call<'_>) -> Result {
    let first = number(call.at(2)).ok_or(Refusal::NotAnInteger)?;
    let last = number(call.at(3)).ok_or(Refusal::NotAnInteger)?;
    let entry = look(&call.db.store, call.at(1), call.db.now, &mut call.needs);
    let value = entry.map_or(&[][..], |entry| entry.value());
    // Negative places count from the end.
    let place = |at: i64| {
        if at < 0 {
            at.saturating_add(value.len() as i64)
        } else {
            at
        }
    };
    let first = place(first).clamp(0, value.len() as i64) as usize;
    let end = place(last).saturating_add(1).clamp(0, value.len() as i64) as usize;
    call.reply.bulk(value.get(first..end).unwrap_or(&[]));
    Ok(())
}

/// What SET was told beside key and value.
#[derive(Default)]
struct SetOptions {
    only_new: bool,
    only_old: bool,
    get: bool,
    keep_ttl: bool,
    lifetime: Option<Duration>,
}

pub(super) fn set(call: &mut Call<'_>) -> Result {
    let key = checked_key(call.at(1))?;
    let options = set_options(call)?;
    let old = look(&call.db.store, key, call.db.now, &mut call.needs);
    let (is_there, old_expires) = (old.is_some(), old.map_or(Time::ZERO, |entry| entry.expires()));
    if options.get {
        write_value(call, key)?;
    }
    if (options.only_new && is_there) || (options.only_old && !is_there) {
        if !options.get {
            call.reply.null();
        }
        return Ok(());
    }
    let expires = match options.lifetime {
        Some(lifetime) => call.db.now.after(lifetime),
        None if options.keep_ttl => old_expires,
        None => Time::ZERO,
    };
    call.change(&Op::Put {
        key,
        value: call.at(2),
        expires,
    });
    if !options.get {
        call.reply.ok();
    }
    Ok(())
}

fn set_options(call: &Call<'_>) -> core::result::Result<SetOptions, Refusal> {
    let mut options = SetOptions::default();
    let mut at = 3;
    while at < call.arguments.len() {
        if call.is(at, "nx") && !options.only_old {
            options.only_new = true;
        } else if call.is(at, "xx") && !options.only_new {
            options.only_old = true;
        } else if call.is(at, "get") {
            options.get = true;
        } else if call.is(at, "keepttl") && options.lifetime.is_none() {
            options.keep_ttl = true;
        } else if call.is(at, "exat") || call.is(at, "pxat") {
            return Err(Refusal::Other("ERR no wall clock: use EX or PX"));
        } else {
            let unit = if call.is(at, "ex") {
                1000
            } else if call.is(at, "px") {
                1
            } else {
                return Err(Refusal::Syntax);
            };
            at += 1;
            if at == call.arguments.len() || options.keep_ttl || options.lifetime.is_some() {
                return Err(Refusal::Syntax);
            }
            options.lifetime = Some(lifetime(call.at(at), unit)?);
        }
        at += 1;
    }
    Ok(options)
}

fn lifetime(text: &[u8], millis_per_unit: i64) -> core::result::Result<Duration, Refusal> {
    let units = number(text).ok_or(Refusal::NotAnInteger)?;
    let millis = units
        .checked_mul(millis_per_unit)
        .and_then(|millis| u64::try_from(millis).ok());
    millis
        .filter(|&millis| millis > 0)
        .map(Duration::from_millis)
        .ok_or(Refusal::InvalidExpire)
}

pub(super) fn setnx(call: &mut Call<'_>) -> Result {
    let key = checked_key(call.at(1))?;
    let is_there = look(&call.db.store, key, call.db.now, &mut call.needs).is_some();
    if !is_there {
        call.change(&Op::Put {
            key,
            value: call.at(2),
            expires: Time::ZERO,
        });
    }
    call.reply.integer(i64::from(!is_there));
    Ok(())
}

pub(super) fn setex(call: &mut Call<'_>) -> Result {
    set_for(call, 1000)
}

pub(super) fn psetex(call: &mut Call<'_>) -> Result {
    set_for(call, 1)
}

fn set_for(call: &mut Call<'_>, millis_per_unit: i64) -> Result {
    let key = checked_key(call.at(1))?;
    let expires = call.db.now.after(lifetime(call.at(2), millis_per_unit)?);
    call.change(&Op::Put {
        key,
        value: call.at(3),
        expires,
    });
    call.reply.ok();
    Ok(())
}

pub(super) fn getset(call: &mut Call<'_>) -> Result {
    let key = checked_key(call.at(1))?;
    write_value(call, key)?;
    call.change(&Op::Put {
        key,
        value: call.at(2),
        expires: Time::ZERO,
    });
    Ok(())
}

/// `TSC key`: stores what the processor's counter shows, and answers it. For the stories of backups that diverge.
pub(super) fn tsc(call: &mut Call<'_>) -> Result {
    let key = checked_key(call.at(1))?;
    let mut text = String::new();
    let _ = write!(text, "{}", (call.db.counter)());
    call.change(&Op::Put {
        key,
        value: text.as_bytes(),
        expires: Time::ZERO,
    });
    call.reply.bulk(text.as_bytes());
    Ok(())
}

pub(super) fn getdel(call: &mut Call<'_>) -> Result {
    let key = call.at(1);
    if write_value(call, key)? {
        call.change(&Op::Delete { key });
    }
    Ok(())
}

pub(super) fn mset(call: &mut Call<'_>) -> Result {
    check_pairs(call)?;
    put_pairs(call);
    call.reply.ok();
    Ok(())
}

pub(super) fn msetnx(call: &mut Call<'_>) -> Result {
    check_pairs(call)?;
    let mut any = false;
    for key in call.arguments.from(1).step_by(2) {
        any |= look(&call.db.store, key, call.db.now, &mut call.needs).is_some();
    }
    if !any {
        put_pairs(call);
    }
    call.reply.integer(i64::from(!any));
    Ok(())
}

fn check_pairs(call: &Call<'_>) -> Result {
    if call.arguments.len().is_multiple_of(2) {
        return Err(Refusal::Arity);
    }
    call.arguments
        .from(1)
        .step_by(2)
        .try_for_each(|key| checked_key(key).map(drop))
}

fn put_pairs(call: &mut Call<'_>) {
    for pair in (1..call.arguments.len()).step_by(2) {
        let (key, value) = (call.at(pair), call.at(pair + 1));
        call.change(&Op::Put {
            key,
            value,
            expires: Time::ZERO,
        });
    }
}

pub(super) fn append(call: &mut Call<'_>) -> Result {
    let key = checked_key(call.at(1))?;
    let tail = call.at(2);
    let entry = look(&call.db.store, key, call.db.now, &mut call.needs);
    let (is_there, len) = (entry.is_some(), entry.map_or(0, |entry| entry.value().len()));
    if len + tail.len() > VALUE_MAX {
        return Err(Refusal::TooLong);
    }
    // However short the tail is, the value may have to move.
    if entry.is_some_and(|entry| !call.db.has_memory(entry.growth(tail.len()))) {
        return Err(Refusal::OutOfMemory);
    }
    if is_there {
        call.change(&Op::Append { key, tail });
    } else {
        // Not an append: a key whose time is over may still lie there.
        call.change(&Op::Put {
            key,
            value: tail,
            expires: Time::ZERO,
        });
    }
    call.reply.count(len + tail.len());
    Ok(())
}

pub(super) fn incr(call: &mut Call<'_>) -> Result {
    add(call, 1)
}

pub(super) fn decr(call: &mut Call<'_>) -> Result {
    add(call, -1)
}

pub(super) fn incrby(call: &mut Call<'_>) -> Result {
    add(call, number(call.at(2)).ok_or(Refusal::NotAnInteger)?)
}

pub(super) fn decrby(call: &mut Call<'_>) -> Result {
    let by = number(call.at(2)).ok_or(Refusal::NotAnInteger)?;
    add(
        call,
        by.checked_neg()
            .ok_or(Refusal::Other("ERR decrement would overflow"))?,
    )
}

fn add(call: &mut Call<'_>, by: i64) -> Result {
    let key = checked_key(call.at(1))?;
    let entry = look(&call.db.store, key, call.db.now, &mut call.needs);
    let (old, expires) = match entry {
        Some(entry) => (
            number(entry.value()).ok_or(Refusal::NotAnInteger)?,
            entry.expires(),
        ),
        None => (0, Time::ZERO),
    };
    let new = old.checked_add(by).ok_or(Refusal::Overflow)?;
    let mut text = alloc::string::String::new();
    // Writing to memory cannot fail.
    let _ = write!(text, "{new}");
    call.change(&Op::Put {
        key,
        value: text.as_bytes(),
        expires,
    });
    call.reply.integer(new);
    Ok(())
}

fn checked_key(key: &[u8]) -> core::result::Result<&[u8], Refusal> {
    if key.len() > KEY_MAX {
        Err(Refusal::LongKey)
    } else {
        Ok(key)
    }
}
