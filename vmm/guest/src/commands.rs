//! The table of commands. `command` looks here; the handlers are in the files below.

mod keys;
mod server;
mod strings;

use crate::command::{Call, Effect, Refusal, Spec};

type Handler = fn(&mut Call<'_>) -> Result<(), Refusal>;

const fn reads(name: &'static str, arity: i32, run: Handler) -> Spec {
    Spec {
        name,
        arity,
        effect: Effect::Reads,
        run,
    }
}

const fn shrinks(name: &'static str, arity: i32, run: Handler) -> Spec {
    Spec {
        name,
        arity,
        effect: Effect::Shrinks,
        run,
    }
}

const fn grows(name: &'static str, arity: i32, run: Handler) -> Spec {
    Spec {
        name,
        arity,
        effect: Effect::Grows,
        run,
    }
}

/// All commands; the busiest come first, for the search goes in this order.
pub(crate) fn all() -> impl Iterator<Item = &'static Spec> {
    STRINGS.iter().chain(KEYS).chain(SERVER)
}

const STRINGS: &[Spec] = &[
    reads("get", 2, strings::get),
    grows("set", -3, strings::set),
    grows("incr", 2, strings::incr),
    reads("mget", -2, strings::mget),
    grows("mset", -3, strings::mset),
    grows("append", 3, strings::append),
    grows("decr", 2, strings::decr),
    grows("incrby", 3, strings::incrby),
    grows("decrby", 3, strings::decrby),
    reads("strlen", 2, strings::strlen),
    reads("getrange", 4, strings::getrange),
    reads("substr", 4, strings::getrange),
    grows("getset", 3, strings::getset),
    shrinks("getdel", 2, strings::getdel),
    grows("setnx", 3, strings::setnx),
    grows("setex", 4, strings::setex),
    grows("psetex", 4, strings::psetex),
    grows("msetnx", -3, strings::msetnx),
    grows("tsc", 2, strings::tsc),
];

const KEYS: &[Spec] = &[
    shrinks("del", -2, keys::del),
    shrinks("unlink", -2, keys::del),
    reads("exists", -2, keys::exists),
    reads("touch", -2, keys::exists),
    reads("type", 2, keys::kind),
    reads("ttl", 2, keys::ttl),
    reads("pttl", 2, keys::pttl),
    shrinks("expire", -3, keys::expire),
    shrinks("pexpire", -3, keys::pexpire),
    shrinks("persist", 2, keys::persist),
    reads("keys", 2, keys::keys),
    reads("scan", -2, keys::scan),
    reads("dbsize", 1, keys::dbsize),
    shrinks("flushall", -1, keys::flush),
    shrinks("flushdb", -1, keys::flush),
];

const SERVER: &[Spec] = &[
    reads("ping", -1, server::ping),
    reads("echo", 2, server::echo),
    reads("info", -1, server::info),
    reads("command", -1, server::command),
    reads("config", -2, server::config),
    reads("client", -2, server::client),
    reads("hello", -1, server::hello),
    reads("auth", -2, server::auth),
    reads("select", 2, server::select),
    reads("quit", -1, server::quit),
    reads("reset", 1, server::reset),
    reads("time", 1, server::time),
    reads("debug", -2, server::debug),
    reads("hash", 2, server::hash),
    reads("shutdown", -1, server::shutdown),
];
