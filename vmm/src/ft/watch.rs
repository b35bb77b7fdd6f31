//! Notices device processes that die, whatever the vCPU thread is doing.
//!
//! The run loop of every role starts one when its device processes are connected; its thread sleeps until a staging
//! socket is closed. What a dead process means is decided by the run loops, which look at [`DevicePort::is_alive`] in
//! every window. Nothing is read from any socket here.

use super::port::{DevicePort, Liveness};
use super::wait::Waker;
use rustix::event::{PollFd, PollFlags, poll};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

/// Watches the device processes of `ports` until they are gone; `waker` ends the sleep of the vCPU thread for each.
///
/// # Errors
/// When this process has no files or threads left.
pub fn watch(ports: &[DevicePort], waker: &Waker) -> io::Result<()> {
    let sockets = ports
        .iter()
        .map(|port| port.staging.socket().try_clone_to_owned());
    let lives = ports.iter().map(DevicePort::liveness);
    let watched = sockets
        .zip(lives)
        .map(|(socket, life)| socket.map(|socket| (socket, life)))
        .collect::<io::Result<Vec<_>>>()?;
    let waker = waker.clone();
    thread::Builder::new()
        .name("device-watch".into())
        .spawn(move || follow(watched, &waker))
        .map(drop)
}

fn follow(mut watched: Vec<(OwnedFd, Liveness)>, waker: &Waker) {
    while !watched.is_empty() {
        let mut fds: Vec<_> = watched
            .iter()
            .map(|(socket, _)| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::RDHUP))
            .collect();
        // An interrupted wait finds nothing and waits again.
        let _ = poll(&mut fds, None);
        let gone: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut gone = gone.into_iter();
        watched.retain(|(_, life)| {
            let stays = gone.next() == Some(false);
            if !stays {
                life.end(&Gone);
                waker.wake();
            }
            stays
        });
    }
}

#[derive(Debug, thiserror::Error)]
#[error("The process closed its staging socket: it has died or was stopped")]
struct Gone;
