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
use crate::status::Status;

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
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let mut row = |key: &str, value: String| {
        table.add_row([key, value.as_str()]);
    };
    row("vm", status.vm.clone());
    row("node", status.node.clone());
    row("role", word(&status.role));
    row("term", status.term.to_string());
    row("position", status.position.to_string());
    row(
        "log",
        format!(
            "{} records, {} acked, {} executed",
            status.log_end, status.acked, status.executed
        ),
    );
    let lag = &status.lag;
    row(
        "lag",
        format!(
            "{} records, {} bytes, {} positions",
            lag.records, lag.bytes, lag.positions
        ),
    );
    row(
        "outputs",
        format!(
            "{} held, {} released",
            status.held_outputs, status.released_outputs
        ),
    );
    row(
        "bytes",
        format!("{} of log for {} of input", status.log_bytes, status.input_bytes),
    );
    if let Some(left) = status.lease_ms_left {
        row("lease", format!("{left} ms left"));
    }
    if let Some(peer) = &status.peer {
        let state = if peer.connected {
            "connected"
        } else {
            "not connected"
        };
        let rtt = peer
            .rtt_us
            .map(|rtt| format!(", round trip {rtt} us"))
            .unwrap_or_default();
        row("peer", format!("{} at {}, {state}{rtt}", peer.node, peer.address));
    }
    for device in &status.devices {
        let state = if device.alive { "alive" } else { "dead" };
        let pid = device
            .pid
            .map(|pid| format!(", process {pid}"))
            .unwrap_or_default();
        row("device", format!("{}: {state}{pid}", device.kind));
    }
    row(
        "guest time",
        format!(
            "{:.3} s",
            Duration::from_nanos(status.guest_time_ns).as_secs_f64()
        ),
    );
    row(
        "uptime",
        format!("{:.3} s", Duration::from_millis(status.uptime_ms).as_secs_f64()),
    );
    if let Some(takeover) = &status.takeover {
        row(
            "takeover",
            format!(
                "noticed in {:.1} ms, replayed in {:.1} ms, claimed in {:.1} ms, live {:.1} ms later",
                takeover.detect_ms, takeover.replay_ms, takeover.claim_ms, takeover.promote_ms
            ),
        );
    }
    for event in &status.events {
        row(
            "event",
            format!(
                "{}.{:09} {}",
                event.at_unix_ns / SECOND,
                event.at_unix_ns % SECOND,
                word(&event.what)
            ),
        );
    }
    table
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
