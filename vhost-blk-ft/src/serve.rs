//! The life of the process: open, listen, serve one front-end after the other, leave on a signal.
//!
//! Called by `main.rs`. It knows nothing of requests.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::Context;
use lockstep_staging::place::make_room;
use lockstep_staging::{BindError, DeviceListener};
use nix::sys::signal::{SigSet, Signal};
use thiserror::Error;
use vhost::vhost_user::Listener;
use vhost_user_backend::VhostUserDaemon;

use crate::args::Args;
use crate::backend::{Backend, SharedBackend};
use crate::disk::Disk;
use crate::sink::{AtomicMemory, Memory};

/// Why nobody can connect.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The socket's place is somebody else's.
    #[error(transparent)]
    Place(#[from] BindError),
    /// The kernel refused.
    #[error("Cannot listen at {0}: does its directory exist, and may this user write there?")]
    Os(PathBuf, #[source] vhost::vhost_user::Error),
}

/// Runs until a signal ends the process; returns when the only front-end has left, or when it cannot go on.
pub fn run(args: &Args) -> anyhow::Result<()> {
    // Threads inherit the mask, so this comes before the first of them.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("Cannot block signals")?;

    let disk = Disk::open(&args.disk_options())?;
    tracing::info!(path = %args.disk.display(), bytes = disk.bytes(), "The disk is open");
    let mut listener = listen(&args.socket)?;
    let backend = match &args.staging {
        None => Backend::plain(disk),
        Some(path) => {
            let staging = DeviceListener::bind(path).context("There is no staging socket")?;
            Backend::protected(disk, staging).context("Cannot watch the staging socket")?
        }
    };
    leave_on(signals, args).context("Cannot wait for signals")?;

    let backend = Arc::new(Mutex::new(backend));
    loop {
        serve_one(&backend, &mut listener)?;
        if args.once {
            return Ok(());
        }
    }
}

/// One front-end, from its connection to its hang-up.
fn serve_one(backend: &SharedBackend, listener: &mut Listener) -> anyhow::Result<()> {
    let memory = AtomicMemory::new(Memory::new());
    let mut daemon = VhostUserDaemon::new("vhost-user".to_owned(), backend.clone(), memory)
        .map_err(|error| anyhow::anyhow!("Cannot make a vhost-user daemon: {error}"))?;
    for handler in daemon.get_epoll_handlers() {
        lock(backend)
            .attach(&handler)
            .context("Cannot watch the staging socket")?;
    }
    daemon
        .start(listener)
        .map_err(|error| anyhow::anyhow!("Cannot take in a front-end: {error}"))?;
    tracing::info!("A front-end has connected");
    match daemon.wait() {
        Ok(()) => tracing::info!("The front-end is gone"),
        // Leaving and misbehaving look alike here, and both end no more than the connection.
        Err(reason) => tracing::info!(%reason, "The front-end is gone"),
    }
    drop(daemon);
    lock(backend).disconnected();
    Ok(())
}

fn lock(backend: &SharedBackend) -> std::sync::MutexGuard<'_, Backend> {
    backend
        .lock()
        .expect("a thread that panicked with the backend has ended the service")
}

/// Listens at `path`; a socket that a dead process left behind is replaced.
fn listen(path: &Path) -> Result<Listener, ListenError> {
    make_room(path)?;
    Listener::new(path, false).map_err(|error| ListenError::Os(path.to_owned(), error))
}

/// Nothing that is completed to the guest is in this process any more, so leaving is removing the sockets.
fn leave_on(signals: SigSet, args: &Args) -> io::Result<()> {
    let sockets: Vec<PathBuf> = std::iter::once(&args.socket)
        .chain(&args.staging)
        .cloned()
        .collect();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let signal = signals.wait();
            tracing::info!(?signal, "Leaving");
            for socket in sockets {
                // Gone already is as good.
                let _ = std::fs::remove_file(socket);
            }
            std::process::exit(0);
        })
        .map(drop)
}
