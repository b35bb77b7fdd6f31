//! Every way this process can wake, by name, and the epoll set of those that are not queue kicks.
//!
//! The vhost-user daemon has an epoll set of its own that lives as long as one front-end; ours lies in it as one
//! descriptor and outlives front-ends. Used by `device.rs` and `backend.rs`; it decides nothing.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::event::{Timespec, epoll};

use crate::limits::QUEUES;

/// A wake-up. The first ones carry the numbers that the daemon gives to queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Wake {
    /// The driver made receive buffers available, or the receive queue was enabled.
    RxKick = 0,
    /// The driver made frames available, or the transmit queue was enabled.
    TxKick = 1,
    /// One of those below; number 2 is the daemon's.
    Own = 3,
    /// The tap has a frame.
    Tap = 4,
    /// A VMM connects to the staging socket.
    StagingConnect = 5,
    /// Our VMM has orders, made room, or moved the gate.
    StagingDoorbell = 6,
    /// Our VMM is gone.
    StagingHangup = 7,
    /// It is time to announce the guest's address again.
    Announce = 8,
    /// We stopped in the middle to let others have their turn.
    Again = 9,
}

const _: () = assert!(
    Wake::Own as usize > QUEUES,
    "the daemon keeps the numbers up to the count of queues"
);

impl Wake {
    /// The wake-up with this number.
    pub fn from_number(number: u64) -> Option<Self> {
        [
            Self::RxKick,
            Self::TxKick,
            Self::Own,
            Self::Tap,
            Self::StagingConnect,
            Self::StagingDoorbell,
            Self::StagingHangup,
            Self::Announce,
            Self::Again,
        ]
        .into_iter()
        .find(|wake| *wake as u64 == number)
    }
}

/// What we wait for.
#[derive(Debug)]
pub struct Wakes {
    epoll: OwnedFd,
}

impl Wakes {
    /// Waits for nothing yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        })
    }

    /// Wakes as `wake` while `source` is readable.
    pub fn watch(&self, source: impl AsFd, wake: Wake) -> io::Result<()> {
        let data = epoll::EventData::new_u64(wake as u64);
        Ok(epoll::add(
            &self.epoll,
            source,
            data,
            epoll::EventFlags::IN | epoll::EventFlags::RDHUP,
        )?)
    }

    /// No longer wakes for `source`. One that was not watched is no matter.
    pub fn unwatch(&self, source: impl AsFd) {
        let _ = epoll::delete(&self.epoll, source);
    }

    /// What is due now.
    pub fn due(&self) -> impl Iterator<Item = Wake> + use<> {
        let mut events = Vec::with_capacity(8);
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // Interrupted is as good as nothing due: the daemon's epoll set wakes us again.
        let _ = epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&now),
        );
        events.into_iter().filter_map(|event: epoll::Event| {
            // The struct is packed.
            let data = event.data;
            Wake::from_number(data.u64())
        })
    }
}

impl AsRawFd for Wakes {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}
