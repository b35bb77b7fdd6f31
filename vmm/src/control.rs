//! The control socket: a Unix socket in the run directory on which a local user asks this node for its status or to
//! stop. One request line, one answer line, one connection at a time; a client that dawdles is hung up on.

use crate::config::CONTROL_SOCKET;
use crate::monitor::Monitor;
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
const REQUEST_MAX: u64 = 64;

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
    stop: impl Fn() + Send + 'static,
) -> Result<(), ControlError> {
    let listener = listen(run_dir)?;
    thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that goes away early loses its answer, nobody else does.
                if let Err(error) = answer(&stream, &monitor, &stop) {
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

fn answer(stream: &UnixStream, monitor: &Monitor, stop: &impl Fn()) -> io::Result<()> {
    stream.set_read_timeout(Some(CLIENT_TIME))?;
    stream.set_write_timeout(Some(CLIENT_TIME))?;
    let mut request = String::new();
    BufReader::new(stream.take(REQUEST_MAX)).read_line(&mut request)?;
    match request.trim() {
        "status" => {
            let mut line = serde_json::to_string(&monitor.status()).map_err(io::Error::other)?;
            line.push('\n');
            (&*stream).write_all(line.as_bytes())
        }
        "stop" => {
            (&*stream).write_all(b"{\"stopping\":true}\n")?;
            stop();
            Ok(())
        }
        _ => (&*stream).write_all(b"{\"error\":\"Ask for status or stop\"}\n"),
    }
}
