//! The life of the process: the vhost-user socket, one front-end after the other, and the signals that end it.
//!
//! Called by `main`. Each front-end gets a fresh daemon, because a daemon believes in one owner for ever; the device
//! below it stays the same.

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_staging::place::make_room;
use lockstep_staging::{BindError, DeviceFacts, DeviceKind};
use nix::sys::signal::{SigSet, Signal};
use thiserror::Error;
use vhost::vhost_user::Listener;
use vhost_user_backend::VhostUserDaemon;
use vm_memory::GuestMemoryAtomic;
use vmm_sys_util::epoll::EventSet;

use crate::args::Args;
use crate::backend::{NetBackend, device_config, device_features};
use crate::device::{Device, DeviceError};
use crate::front_door::FrontDoor;
use crate::queue::Memory;
use crate::tap::Tap;
use crate::wakes::Wake;

/// Why the process ends with a failure.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The device could not be made.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// There is no place for the socket, or for the one beside it.
    #[error(transparent)]
    Place(#[from] BindError),
    /// No socket.
    #[error("Cannot listen at {path}: {reason}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the kernel said, in the words of the vhost crate.
        reason: String,
    },
    /// The daemon could not be made or driven.
    #[error("The vhost-user daemon failed: {0}")]
    Daemon(String),
    /// Signals or descriptors could not be had.
    #[error("Cannot set up the process")]
    Process(#[from] io::Error),
}

/// Serves front-ends until a signal comes, or until the first one leaves when that was asked for.
pub fn serve(args: &Args) -> Result<(), ServeError> {
    let tap = Tap::open(&args.tap).map_err(DeviceError::from)?;
    let facts = DeviceFacts {
        kind: DeviceKind::Net,
        features: device_features(tap.features(), args.mac),
        config: device_config(args.mac),
        is_mirrored: false,
        image: None,
        release: concat!("vhost-net-ft ", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    // Before any thread is started, so that every thread leaves signals to the one that waits for them.
    let signals = block_signals()?;
    let device = Device::new(&args.tap, tap, args.staging.as_deref(), facts, args.mac)?;
    let backend = Arc::new(NetBackend::new(device));
    let listener = listen(&args.socket)?;
    // Whether there can be one, as with a long path, is found out before the first front-end comes.
    FrontDoor::beside(&args.socket)?;
    let sockets = std::iter::once(&args.socket)
        .chain(&args.staging)
        .cloned()
        .collect();
    exit_on(signals, sockets)?;
    tracing::info!(tap = args.tap, socket = %args.socket.display(), "Ready");
    loop {
        serve_one(&backend, &listener, &args.socket)?;
        if args.once {
            return Ok(());
        }
    }
}

/// One front-end, from its connecting to its leaving.
fn serve_one(backend: &Arc<NetBackend>, listener: &Listener, socket: &Path) -> Result<(), ServeError> {
    let failed = |error: vhost_user_backend::Error| ServeError::Daemon(error.to_string());
    backend.device().forget_front_end();
    let memory = GuestMemoryAtomic::new(Memory::new());
    let mut daemon =
        VhostUserDaemon::new("vhost-net-ft".to_owned(), backend.clone(), memory).map_err(failed)?;
    let wakes = backend.device().wakes().as_raw_fd();
    for worker in daemon.get_epoll_handlers() {
        worker.register_listener(wakes, EventSet::IN, Wake::Own as u64)?;
    }
    let front_end = loop {
        match listener.accept() {
            Ok(Some(front_end)) => break front_end,
            Ok(None) => {}
            Err(error) => return Err(ServeError::Daemon(error.to_string())),
        }
    };
    tracing::info!("A front-end connected");
    backend.device().meet_front_end();
    FrontDoor::beside(socket)?.admit(front_end, |inner| daemon.start_client(inner).map_err(failed))?;
    match daemon.wait() {
        Ok(()) => tracing::info!("The front-end left"),
        // Leaving and misbehaving look alike here, and both end no more than the connection.
        Err(error) => tracing::info!(%error, "The front-end's connection ended"),
    }
    drop(daemon);
    backend.close_exit_event();
    Ok(())
}

fn listen(path: &Path) -> Result<Listener, ServeError> {
    make_room(path)?;
    Listener::new(path, false).map_err(|error| ServeError::Listen {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

fn block_signals() -> io::Result<SigSet> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    Ok(signals)
}

/// Waits for a signal on a thread of its own, then ends the process; whatever is held is dropped with it.
fn exit_on(signals: SigSet, sockets: Vec<PathBuf>) -> io::Result<()> {
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let signal = signals.wait();
            tracing::info!(?signal, "Asked to end");
            for socket in sockets {
                // One that is gone already is what we want.
                let _ = std::fs::remove_file(socket);
            }
            std::process::exit(0);
        })?;
    Ok(())
}
