//! Where the vCPU thread of a live machine sleeps while its guest idles: until a device process staged something, the
//! pair has news, or the guest's own limit is over. Nothing is taken out of any ring here.

use super::port::DevicePort;
use lockstep_staging::doorbell::Doorbell;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::iter;
use std::sync::Arc;
use std::time::Duration;

/// How long to sleep at most while something is staged that cannot enter yet (the guest has no buffers).
const BLOCKED_NAP: Duration = Duration::from_millis(1);

/// Wakes the vCPU thread from other threads.
#[derive(Clone, Debug)]
pub struct Waker(Arc<Doorbell>);

impl Waker {
    /// A new waker.
    ///
    /// # Errors
    /// When the host gives no event file.
    pub fn new() -> io::Result<Self> {
        Doorbell::new().map(|bell| Self(Arc::new(bell)))
    }

    /// Ends the current or next sleep.
    pub fn wake(&self) {
        self.0.ring();
    }
}

/// Sleeps until there may be something to do, at most `limit`; `None` is no limit.
pub(super) fn sleep(ports: &[DevicePort], waker: &Waker, limit: Option<Duration>) {
    let mut empty = true;
    for port in ports.iter().filter(|port| port.is_alive()) {
        empty &= port.staging.prepare_sleep();
    }
    let limit = if empty {
        limit
    } else {
        Some(limit.map_or(BLOCKED_NAP, |limit| limit.min(BLOCKED_NAP)))
    };
    let alive = ports.iter().filter(|port| port.is_alive());
    let bells: Vec<_> = iter::once(&*waker.0)
        .chain(alive.clone().map(|port| port.staging.doorbell()))
        .collect();
    let mut fds: Vec<_> = bells
        .iter()
        .map(|bell| PollFd::new(*bell, PollFlags::IN))
        .collect();
    let timeout = limit.map(|limit| Timespec::try_from(limit).unwrap_or(LONG));
    // An interrupted sleep is over like any other: the caller looks at everything again.
    let _ = poll(&mut fds, timeout.as_ref());
    alive.for_each(|port| port.staging.end_sleep());
    let rang = bells.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
    rang.for_each(|(bell, _)| bell.drain());
}

/// Stands for "no limit" where one does not fit the kernel's type.
const LONG: Timespec = Timespec {
    tv_sec: 3600,
    tv_nsec: 0,
};
