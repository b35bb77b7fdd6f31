//! What demo and bench need of this process before they start, and their end: KVM, a network namespace, one thread that
//! everything runs on, and that an interrupt ends the story in an orderly way.

use std::fs::OpenOptions;
use std::process::ExitCode;

use anyhow::Context;
use nix::sys::prctl::set_child_subreaper;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use crate::world::namespace;

/// Says in one sentence why there is no KVM here, and the exit code for that; nothing where there is one.
pub(crate) fn missing_kvm() -> Option<ExitCode> {
    let error = OpenOptions::new().read(true).write(true).open(KVM).err()?;
    eprintln!("lockstep: {KVM} is not usable here ({error}); `lockstep check` names the remedy");
    Some(ExitCode::from(NO_KVM))
}

/// Plays a story in a network namespace of its own. Must be called before this process has a second thread.
pub(crate) fn play<T>(story: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    namespace::enter()?;
    // What a killed host leaves behind becomes our child, so that we can see it gone.
    set_child_subreaper(true).context("Cannot become the reaper of the hosts' processes")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("Cannot start tokio")?;
    // One thread for all: a host dies with the thread that started it, and all connections share one order of events.
    LocalSet::new().block_on(&runtime, async {
        tokio::select! {
            told = story => told,
            name = interrupted() => Err(anyhow::anyhow!("Stopped by {}; everything that was started is gone again", name?)),
        }
    })
}

async fn interrupted() -> anyhow::Result<&'static str> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
        _ = hang_up.recv() => "SIGHUP",
    })
}

const KVM: &str = "/dev/kvm";
const NO_KVM: u8 = 2;
