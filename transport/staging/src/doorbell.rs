//! A doorbell: an eventfd that one end rings when the other end said that it sleeps.
//!
//! Both ends hold both doorbells; each rings one and polls the other. Ringing and draining never block and never fail
//! loudly: a lost count does not matter, because whoever wakes looks at the rings and not at the counter.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{EventfdFlags, eventfd};

/// An eventfd, ready to be put into a poll or epoll set.
#[derive(Debug)]
pub struct Doorbell {
    fd: OwnedFd,
}

impl Doorbell {
    /// Makes a silent doorbell.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd })
    }

    /// Takes over a doorbell that the other end sent.
    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Wakes whoever polls this doorbell.
    pub fn ring(&self) {
        // A full counter (EAGAIN) is a doorbell that rings already.
        let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
    }

    /// Makes the doorbell silent again; call after waking and before looking at the rings.
    pub fn drain(&self) {
        let mut count = [0_u8; 8];
        // EAGAIN is a doorbell that was silent.
        let _ = rustix::io::read(&self.fd, &mut count);
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
