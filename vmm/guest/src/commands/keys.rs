//! Commands on keys as such. Called through the table in `commands`.

use core::time::Duration;

use crate::arguments::number;
use crate::command::{Call, Refusal, look};
use crate::glob;
use crate::store::op::Op;
use crate::units::Time;

type Result = core::result::Result<(), Refusal>;

pub(super) fn del(call: &mut Call<'_>) -> Result {
    let mut deleted = 0;
    for key in call.arguments.from(1) {
        if look(&call.db.store, key, call.db.now, &mut call.needs).is_some() {
            call.change(&Op::Delete { key });
            deleted += 1;
        }
    }
    call.reply.integer(deleted);
    Ok(())
}

pub(super) fn exists(call: &mut Call<'_>) -> Result {
    let mut found = 0;
    for key in call.arguments.from(1) {
        found += i64::from(look(&call.db.store, key, call.db.now, &mut call.needs).is_some());
    }
    call.reply.integer(found);
    Ok(())
}

pub(super) fn kind(call: &mut Call<'_>) -> Result {
    let found = look(&call.db.store, call.at(1), call.db.now, &mut call.needs).is_some();
    call.reply.simple(if found { "string" } else { "none" });
    Ok(())
}

pub(super) fn ttl(call: &mut Call<'_>) -> Result {
    remaining(call, |left| {
        i64::try_from(left.as_millis().div_ceil(1000)).unwrap_or(i64::MAX)
    })
}

pub(super) fn pttl(call: &mut Call<'_>) -> Result {
    remaining(call, |left| i64::try_from(left.as_millis()).unwrap_or(i64::MAX))
}

fn remaining(call: &mut Call<'_>, unit: fn(Duration) -> i64) -> Result {
    let now = call.db.now;
    let left = match look(&call.db.store, call.at(1), now, &mut call.needs).map(|entry| entry.expires()) {
        None => -2,
        Some(Time::ZERO) => -1,
        Some(expires) => unit(expires.since(now)),
    };
    call.reply.integer(left);
    Ok(())
}

pub(super) fn expire(call: &mut Call<'_>) -> Result {
    expire_in(call, 1000)
}

pub(super) fn pexpire(call: &mut Call<'_>) -> Result {
    expire_in(call, 1)
}

fn expire_in(call: &mut Call<'_>, millis_per_unit: i64) -> Result {
    if call.arguments.len() > 3 {
        return Err(Refusal::Other("ERR Unsupported option"));
    }
    let key = call.at(1);
    let units = number(call.at(2)).ok_or(Refusal::NotAnInteger)?;
    let millis = units.checked_mul(millis_per_unit).ok_or(Refusal::InvalidExpire)?;
    let found = look(&call.db.store, key, call.db.now, &mut call.needs).is_some();
    if found {
        match u64::try_from(millis) {
            Ok(millis) if millis > 0 => {
                let expires = call.db.now.after(Duration::from_millis(millis));
                call.change(&Op::Expire { key, expires });
            }
            _ => call.change(&Op::Delete { key }),
        }
    }
    call.reply.integer(i64::from(found));
    Ok(())
}

pub(super) fn persist(call: &mut Call<'_>) -> Result {
    let key = call.at(1);
    let entry = look(&call.db.store, key, call.db.now, &mut call.needs);
    let expires = entry.is_some_and(|entry| entry.expires() != Time::ZERO);
    if expires {
        call.change(&Op::Expire {
            key,
            expires: Time::ZERO,
        });
    }
    call.reply.integer(i64::from(expires));
    Ok(())
}

pub(super) fn keys(call: &mut Call<'_>) -> Result {
    list(call, call.at(1));
    Ok(())
}

/// Everything in one go: a cursor that is over at once is within Redis's contract.
pub(super) fn scan(call: &mut Call<'_>) -> Result {
    if number(call.at(1)).is_none_or(|cursor| cursor < 0) {
        return Err(Refusal::Other("ERR invalid cursor"));
    }
    let mut pattern: &[u8] = b"*";
    let mut strings = true;
    for option in (2..call.arguments.len()).step_by(2) {
        if option + 1 == call.arguments.len() {
            return Err(Refusal::Syntax);
        }
        if call.is(option, "match") {
            pattern = call.at(option + 1);
        } else if call.is(option, "type") {
            strings = call.is(option + 1, "string");
        } else if !call.is(option, "count") {
            return Err(Refusal::Syntax);
        }
    }
    call.reply.array(2);
    call.reply.bulk(b"0");
    if strings && call.at(1) == b"0" {
        list(call, pattern);
    } else {
        call.reply.array(0);
    }
    Ok(())
}

/// Writes the keys that match.
fn list(call: &mut Call<'_>, pattern: &[u8]) {
    call.depend_on_all();
    let (store, now) = (&call.db.store, call.db.now);
    let listed = || {
        store
            .after(None)
            .filter(|(key, entry)| !entry.is_over(now) && glob::matches(pattern, key))
    };
    call.reply.array(listed().count());
    listed().for_each(|(key, _)| call.reply.bulk(key));
}

pub(super) fn dbsize(call: &mut Call<'_>) -> Result {
    call.depend_on_all();
    call.reply.count(call.db.store.len());
    Ok(())
}

pub(super) fn flush(call: &mut Call<'_>) -> Result {
    let known = call.arguments.len() == 1
        || (call.arguments.len() == 2 && (call.is(1, "sync") || call.is(1, "async")));
    if !known {
        return Err(Refusal::Syntax);
    }
    call.change(&Op::Clear);
    call.reply.ok();
    Ok(())
}
