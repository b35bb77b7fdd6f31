//! The control socket: a Unix socket in the run directory on which a local user asks this node for its status, for a
//! snapshot, or to stop. One request line, one answer line, one connection at a time; a client that dawdles is hung up on.

use crate::config::CONTROL_SOCKET;
use crate::errand::{Errands, Taken};
use crate::monitor::Monitor;
use crate::state::snapshot::Draft;
use crate::status::Role;
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// How long a client may take to ask and to read the answer.
const CLIENT_TIME: Duration = Duration::from_millis(500);
/// The longest request.
const REQUEST_MAX: u64 = 64 + libc::PATH_MAX as u64;
/// The request for a snapshot; the file's absolute path follows.
pub const SNAPSHOT: &str = "snapshot ";

/// Why the run directory or its socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The directory cannot be made.
    #[error("Cannot use the run directory {}; make it, or name another as run_dir", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    /// A node runs there already.
    #[error("Another node runs in {}; stop it, or give this one a run_dir of its own", .0.display())]
    InUse(PathBuf),
    /// The socket cannot be made.
    #[error("Cannot listen at {}", .0.display())]
    Listen(PathBuf, #[source] io::Error),
}

/// Makes the run directory and answers on its control socket for as long as the process lives. `stop` is called when
/// somebody asks the node to stop.
///
/// # Errors
/// When the directory is not usable or another node runs in it.
pub fn serve(
    run_dir: &Path,
    monitor: Arc<Monitor>,
    errands: Errands,
    stop: impl Fn() + Send + 'static,
) -> Result<(), ControlError> {
    let listener = listen(run_dir)?;
    thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that goes away early loses its answer, nobody else does.
                if let Err(error) = answer(&stream, &monitor, &errands, &stop) {
                    tracing::debug!(%error, "A client of the control socket went away");
                }
            }
        })
        .map(|_| ())
        .map_err(|error| ControlError::Listen(run_dir.into(), error))
}

fn listen(run_dir: &Path) -> Result<UnixListener, ControlError> {
    let directory = |error| ControlError::Directory(run_dir.into(), error);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(run_dir)
        .map_err(directory)?;
    let path = run_dir.join(CONTROL_SOCKET);
    if UnixStream::connect(&path).is_ok() {
        return Err(ControlError::InUse(run_dir.into()));
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(directory(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(|error| ControlError::Listen(path.clone(), error))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(directory)?;
    Ok(listener)
}

fn answer(
    stream: &UnixStream,
    monitor: &Arc<Monitor>,
    errands: &Errands,
    stop: &impl Fn(),
) -> io::Result<()> {
    stream.set_read_timeout(Some(CLIENT_TIME))?;
    stream.set_write_timeout(Some(CLIENT_TIME))?;
    let mut request = String::new();
    BufReader::new(stream.take(REQUEST_MAX)).read_line(&mut request)?;
    if let Some(path) = request.trim_end_matches('\n').strip_prefix(SNAPSHOT) {
        return answer_snapshot(
            stream.try_clone()?,
            path.into(),
            Arc::clone(monitor),
            errands.clone(),
        );
    }
    match request.trim() {
        "status" => write_line(stream, &monitor.status()),
        "stop" => {
            (&*stream).write_all(b"{\"stopping\":true}\n")?;
            stop();
            Ok(())
        }
        _ => (&*stream).write_all(b"{\"error\":\"Ask for status, snapshot PATH or stop\"}\n"),
    }
}

/// What became of a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotAnswer {
    /// It is there.
    Taken {
        /// Where the machine stood.
        position: u64,
        /// Bytes of the file.
        bytes: u64,
        /// How long the guest stood still.
        stood_still_ms: f64,
    },
    /// It is not, and why.
    Refused(String),
}

/// On a thread of its own, because others ask meanwhile.
fn answer_snapshot(
    stream: UnixStream,
    path: PathBuf,
    monitor: Arc<Monitor>,
    errands: Errands,
) -> io::Result<()> {
    thread::Builder::new()
        .name("snapshot".into())
        .spawn(move || {
            let answer = match snapshot(&path, &monitor, &errands) {
                Ok(taken) => SnapshotAnswer::Taken {
                    position: taken.position.get(),
                    bytes: taken.bytes,
                    stood_still_ms: taken.stood_still.as_secs_f64() * 1e3,
                },
                Err(error) => SnapshotAnswer::Refused(format!("{error:#}")),
            };
            if let Err(error) = write_line(&stream, &answer) {
                tracing::debug!(%error, "Who asked for a snapshot went away");
            }
        })
        .map(|_| ())
}

fn snapshot(path: &Path, monitor: &Monitor, errands: &Errands) -> anyhow::Result<Taken> {
    ensure!(
        matches!(monitor.status().role, Role::Primary | Role::Alone),
        "This node does not talk to the outside; ask the one whose role is primary or alone"
    );
    ensure!(path.is_absolute(), "The snapshot needs an absolute path");
    let draft = Draft::begin(path).with_context(|| format!("Cannot write {}", path.display()))?;
    Ok(errands.snapshot(draft)?)
}

fn write_line(mut stream: &UnixStream, answer: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_string(answer).map_err(io::Error::other)?;
    line.push('\n');
    stream.write_all(line.as_bytes())
}
