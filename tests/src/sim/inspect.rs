//! What the oracle checks by looking at several hosts at once, right after something happened on one of them.

use lockstep_protocol::ids::LogOffset;
use lockstep_protocol::limits::{BACKLOG_BYTES, BACKLOG_RECORDS};

use super::device::Departure;
use super::env::{Env, NAMES};
use super::host::Host;
use super::process::{Pair, Part, Process};
use super::wires::ConnId;

/// Something happened on a host.
pub(crate) fn after(env: &mut Env, hosts: &[Host], host: usize) {
    if let Some(alone) = env.oracle.take_alone() {
        nobody_else_speaks(env, hosts, alone);
    }
    let Some(process) = hosts[host].process.as_deref() else {
        return;
    };
    if let Pair::Primary(_) = &process.pair {
        acks_are_true(env, hosts, process);
    }
    memory_is_bounded(env, process);
}

/// I7: whoever begins to hold a term alone does so when the lease of everybody else is over.
fn nobody_else_speaks(env: &mut Env, hosts: &[Host], alone: usize) {
    let others = hosts.iter().enumerate().filter(|(host, _)| *host != alone);
    for (_, other) in others {
        let Some(process) = other.process.as_deref() else {
            continue;
        };
        let now = other.clock.shows(env.now);
        let gates = [process.card.shown.gate(), process.drive.shown.gate()];
        if gates.iter().any(|gate| gate.lets(LogOffset::ZERO, now)) {
            let sentence = format!(
                "it begins to live alone while host {} may still speak",
                NAMES[process.desk.host]
            );
            env.accuse("I7", alone, &sentence);
        }
    }
}

/// I1: what is acked was received.
fn acks_are_true(env: &mut Env, hosts: &[Host], process: &Process) {
    let Pair::Primary(end) = &process.pair else {
        return;
    };
    let acked = end.machine.acked();
    let gate = process
        .card
        .shown
        .gate()
        .acked
        .max(process.drive.shown.gate().acked);
    if acked > end.machine.end() || gate > acked {
        let sentence = format!(
            "acked is {acked}, its gates say {gate}, and its log ends at {}",
            end.machine.end()
        );
        env.accuse("I1", process.desk.host, &sentence);
    }
    if let Some(held) = held_elsewhere(hosts, end.conn)
        && acked > held
    {
        let sentence = format!("acked is {acked}, but its backup received only {held}");
        env.accuse("I1", process.desk.host, &sentence);
    }
}

/// How much of the log of a session its backup holds, if it still has it.
fn held_elsewhere(hosts: &[Host], session: ConnId) -> Option<LogOffset> {
    let processes = hosts.iter().filter_map(|host| host.process.as_deref());
    processes.filter_map(|process| process.holds(session)).next()
}

/// I5: whoever may take over holds every record that an output was made of when it leaves. I13: and in a term that
/// began with a spare, the record that made it a backup.
pub(crate) fn explained(env: &mut Env, hosts: &[Host], departure: &Departure) {
    let Departure { desk, made } = departure;
    let held = desk.session.and_then(|session| held_elsewhere(hosts, session));
    if let Some((held, start)) = held.zip(desk.copied_at)
        && held <= start
    {
        let sentence = "an output leaves in a term of which the spare has no record yet";
        env.accuse("I13", desk.host, &sentence);
    }
    if let Some(held) = held.filter(|held| made.needs > *held) {
        let sentence = format!(
            "an output leaves that needs the log up to {}, of which the other host holds {held}",
            made.needs
        );
        env.accuse("I5", desk.host, &sentence);
    }
}

/// I8: nothing grows beyond its limit. One window, one piece of the stream, may go over it.
fn memory_is_bounded(env: &mut Env, process: &Process) {
    let over = match &process.pair {
        Pair::Primary(end) => {
            let machine = &end.machine;
            let unacked = machine.end().since(machine.acked());
            let records = env.plan.window.records + WINDOW_RECORDS;
            (unacked > records).then(|| format!("{unacked} records are unacked, {records} are allowed"))
        }
        Pair::Backup(end) => end.backlog().and_then(|(records, bytes)| {
            let too_many = records > BACKLOG_RECORDS + env.plan.stream_window / 2;
            let too_much = bytes > BACKLOG_BYTES + PIECES_BYTES;
            (too_many || too_much).then(|| format!("{records} records of {bytes} bytes wait to be replayed"))
        }),
        _ => None,
    };
    if let Some(sentence) = over {
        env.accuse("I8", process.desk.host, &sentence);
    }
}

/// So many records enter in one window at most.
const WINDOW_RECORDS: u64 = 64;
/// So many bytes are taken off the stream at once at most, as they count in memory.
const PIECES_BYTES: usize = 4 << 20;

/// Is the VM protected, or honestly unprotected: does one host live, and does no other believe that it does?
pub(crate) fn is_settled(hosts: &[Host]) -> bool {
    let parts = hosts.iter().filter_map(|host| host.process.as_deref());
    let parts: Vec<_> = parts.map(|process| &process.part).collect();
    let live = parts.iter().filter(|part| matches!(part, Part::Live)).count();
    let settled = |part: &&Part| !matches!(part, Part::Settling(_) | Part::Leaving { .. });
    live == 1 && parts.iter().all(settled)
}

/// All must be well by now.
pub(crate) fn recovery(env: &mut Env, hosts: &[Host]) {
    let sentence = match is_settled(hosts) {
        true => "One host lives, but it does not answer everybody".into(),
        false => format!(
            "Long after the last fault the hosts are not settled: {:?}",
            hosts
                .iter()
                .map(|host| host.process.as_deref().map(|process| process.part.name()))
                .collect::<Vec<_>>()
        ),
    };
    env.oracle.accuse(env.now, "I14", sentence);
}
