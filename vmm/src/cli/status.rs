//! `lockstep status`: asks a node's control socket and prints the answer for people or for programs. It only reads; a
//! node that does not answer in time is reported as such, never waited for.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use comfy_table::{Table, presets};

use crate::config::{CONTROL_SOCKET, Config};
use crate::status::{Copy, Status};

/// Prints the status of the node in `run_dir`, or of `node` in the configuration `config`.
pub fn status(
    run_dir: Option<&Path>,
    config: Option<&Path>,
    node: Option<&str>,
    json: bool,
    watch: bool,
) -> anyhow::Result<ExitCode> {
    let socket = socket_of(run_dir, config, node)?;
    loop {
        let (status, line) = ask(&socket)?;
        if json {
            println!("{line}");
        } else {
            println!("{}", table(&status));
        }
        if !watch {
            return Ok(ExitCode::SUCCESS);
        }
        thread::sleep(WATCH_INTERVAL);
    }
}

fn socket_of(run_dir: Option<&Path>, config: Option<&Path>, node: Option<&str>) -> anyhow::Result<PathBuf> {
    match (run_dir, config, node) {
        (Some(run_dir), _, _) => Ok(run_dir.join(CONTROL_SOCKET)),
        (None, Some(config), Some(node)) => Ok(Config::load(config)?.node(node)?.control_socket()),
        _ => anyhow::bail!("Name the node with --run-dir, or with --config and --node"),
    }
}

/// Asks once. Returns the answer parsed and as it was written.
fn ask(socket: &Path) -> anyhow::Result<(Status, String)> {
    let mut stream = UnixStream::connect(socket).with_context(|| {
        format!(
            "No node answers at {}; is `lockstep run` running there, and may this user open it?",
            socket.display()
        )
    })?;
    stream.set_read_timeout(Some(ANSWER_TIME))?;
    stream.set_write_timeout(Some(ANSWER_TIME))?;
    stream
        .write_all(b"status\n")
        .context("The node closed its control socket")?;
    let mut line = String::new();
    BufReader::new(stream.take(ANSWER_MAX))
        .read_line(&mut line)
        .context("The node did not answer in time")?;
    let status = serde_json::from_str(&line).context("The node answered something that is not a status")?;
    Ok((status, line.trim_end().to_owned()))
}

fn table(status: &Status) -> Table {
    let mut rows = vec![
        ("vm", status.vm.clone()),
        ("node", status.node.clone()),
        ("role", word(&status.role)),
        ("term", status.term.to_string()),
        ("position", status.position.to_string()),
    ];
    rows.extend(traffic(status));
    rows.extend(surroundings(status));
    rows.extend(history(status));
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.add_rows(rows.into_iter().map(|(key, value)| [key.to_owned(), value]));
    table
}

/// What goes through the pair.
fn traffic(status: &Status) -> Vec<(&'static str, String)> {
    let lag = &status.lag;
    vec![
        (
            "log",
            format!(
                "{} records, {} acked, {} executed",
                status.log_end, status.acked, status.executed
            ),
        ),
        (
            "lag",
            format!("{} records, {} positions", lag.records, lag.positions),
        ),
        (
            "outputs",
            format!(
                "{} held, {} released",
                status.held_outputs, status.released_outputs
            ),
        ),
        (
            "bytes",
            format!("{} of log for {} of input", status.log_bytes, status.input_bytes),
        ),
    ]
}

/// Peer, lease, devices and clocks.
fn surroundings(status: &Status) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let Some(left) = status.lease_ms_left {
        rows.push(("lease", format!("{left} ms left")));
    }
    if let Some(peer) = &status.peer {
        let state = match (&peer.lost, peer.connected) {
            (_, true) => "connected".to_owned(),
            (Some(why), false) => format!("not connected ({why})"),
            (None, false) => "not connected".to_owned(),
        };
        let rtt = peer
            .rtt_us
            .map(|rtt| format!(", round trip {rtt} us"))
            .unwrap_or_default();
        rows.push(("peer", format!("{} at {}, {state}{rtt}", peer.node, peer.address)));
    }
    for spare in &status.spares {
        rows.push(("spare", format!("{} at {}", spare.node, spare.address)));
    }
    for device in &status.devices {
        let state = if device.alive { "alive" } else { "dead" };
        let pid = device
            .pid
            .map(|pid| format!(", process {pid}"))
            .unwrap_or_default();
        rows.push(("device", format!("{}: {state}{pid}", device.kind)));
    }
    let seconds = |time: Duration| format!("{:.3} s", time.as_secs_f64());
    if status.longest_run_us > 0 {
        let millis = |us: u64| us as f64 / 1e3;
        let text = format!(
            "at most {:.1} ms; the longest run without a window was {:.1} ms",
            millis(status.longest_wait_us),
            millis(status.longest_run_us)
        );
        rows.push(("inputs late", text));
    }
    if status.deltas > 0 {
        let text = format!("{} of {} bytes", status.deltas, status.delta_bytes);
        rows.push(("deltas", text));
    }
    if let Some(found) = &status.divergence {
        let text = format!(
            "{} found, {} healed; the last {found}",
            status.divergences, status.healed
        );
        rows.push(("divergence", text));
    }
    rows.push(("guest time", seconds(Duration::from_nanos(status.guest_time_ns))));
    rows.push(("uptime", seconds(Duration::from_millis(status.uptime_ms))));
    rows
}

fn history(status: &Status) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let Some(takeover) = &status.takeover {
        let text = format!(
            "noticed in {:.1} ms, replayed in {:.1} ms, claimed in {:.1} ms, live {:.1} ms later",
            takeover.detect_ms, takeover.replay_ms, takeover.claim_ms, takeover.promote_ms
        );
        rows.push(("takeover", text));
    }
    if let Some(copy) = &status.copy {
        rows.push(("copy", copied(copy)));
    }
    for event in &status.events {
        let (seconds, nanos) = (event.at_unix_ns / SECOND, event.at_unix_ns % SECOND);
        rows.push(("event", format!("{seconds}.{nanos:09} {}", word(&event.what))));
    }
    rows
}

/// How far a copy of the VM is, or how it went.
fn copied(copy: &Copy) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let done = format!(
        "{:.1} MiB for {} pages in {} rounds, {:.1} MiB a second",
        mib(copy.bytes),
        copy.pages,
        copy.rounds,
        mib(copy.bytes_per_s)
    );
    let disk = copy.disk.as_ref().map_or(String::new(), |disk| {
        let what = if disk.whole {
            "the disk"
        } else {
            "what changed on the disk"
        };
        format!(", {what}: {:.1} MiB", mib(disk.bytes))
    });
    let done = done + &disk;
    match (copy.stop_ms, copy.seconds_left) {
        (Some(stop), _) => format!("{done}, {:.2} s; stood still for {stop:.1} ms", copy.seconds),
        (None, Some(left)) => format!("{done}; {} pages left, about {left:.1} s", copy.pages_left),
        (None, None) => done,
    }
}

/// A unit variant as its JSON word, in words.
fn word<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| value.as_str().map(|word| word.replace('_', " ")))
        .unwrap_or_default()
}

const SECOND: u64 = 1_000_000_000;
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// An answer is a few KiB; whatever sits behind the socket, it is not read without end.
const ANSWER_MAX: u64 = 1 << 20;
