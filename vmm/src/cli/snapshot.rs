//! `lockstep snapshot`: has a running node write a snapshot of its VM and says what came of it. The node writes the file;
//! this command only asks and waits.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::config::Config;
use crate::control::{SNAPSHOT, SnapshotAnswer};

/// Has `node` of the configuration `config` write a snapshot to the file `to`.
pub fn snapshot(config: &Path, node: &str, to: &Path) -> anyhow::Result<ExitCode> {
    let socket = Config::load(config)?.node(node)?.control_socket();
    // The node has a working directory of its own.
    let to = std::path::absolute(to).with_context(|| format!("Cannot tell where {} is", to.display()))?;
    let path = to.to_str().context("The path of a snapshot must be UTF-8")?;
    ensure!(!path.contains('\n'), "The path of a snapshot must be one line");
    match ask(&socket, path)? {
        SnapshotAnswer::Taken {
            position,
            bytes,
            stood_still_ms,
        } => {
            println!("Wrote {path}: {bytes} bytes, the VM at position {position}");
            println!("The guest stood still for {stood_still_ms:.1} ms");
            Ok(ExitCode::SUCCESS)
        }
        SnapshotAnswer::Refused(why) => bail!(why),
    }
}

fn ask(socket: &Path, path: &str) -> anyhow::Result<SnapshotAnswer> {
    let mut stream = UnixStream::connect(socket).with_context(|| {
        format!(
            "No node answers at {}; is `lockstep run` running there, and may this user open it?",
            socket.display()
        )
    })?;
    stream.set_read_timeout(Some(WRITE_TIME))?;
    writeln!(stream, "{SNAPSHOT}{path}").context("The node closed its control socket")?;
    let mut line = String::new();
    BufReader::new(stream.take(ANSWER_MAX))
        .read_line(&mut line)
        .context("The node did not answer in time")?;
    ensure!(!line.is_empty(), "The node stopped before the snapshot was taken");
    serde_json::from_str(&line).context("The node answered something else; is it of this release?")
}

/// Longer than the node itself waits.
const WRITE_TIME: Duration = Duration::from_secs(600);
const ANSWER_MAX: u64 = 64 << 10;
