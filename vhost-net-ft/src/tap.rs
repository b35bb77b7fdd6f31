//! The tap: the end of the wire that faces the outside, frames with a virtio header both ways, of 12 bytes unless a driver
//! is older.
//!
//! Opened by `main`, read by `rx.rs`, written by `tx.rs`. The only file of this crate with `unsafe`: three ioctls that
//! no safe wrapper offers. It never holds, delays or judges a frame.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{c_int, c_uint, c_ulong, ifreq};
use thiserror::Error;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
};
use vm_memory::{ReadVolatile, VolatileSlice};

use crate::frame::HEADER;

/// What a guest's frames may leave to the tap: any tap that takes virtio headers does all of it on transmission.
const TRANSMIT_OFFLOADS: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN;

/// What the kernel may leave to the guest on reception: feature bit and the tap's flag for it.
const RECEIVE_OFFLOADS: [(u32, c_uint); 4] = [
    (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
];

/// Why there is no tap.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Longer than a network interface's name can be, or empty, or with a zero in it.
    #[error("{0:?} cannot be the name of a network interface")]
    Name(String),
    /// The kernel has no tun driver, or this process may not open it.
    #[error("Cannot open /dev/net/tun; is the tun module loaded (`modprobe tun`) and the file accessible")]
    Driver(#[source] io::Error),
    /// Making or attaching it takes rights.
    #[error(
        "No right to use the tap {0}: run with CAP_NET_ADMIN, or make it for this user with \
         `ip tuntap add {0} mode tap user $USER`"
    )]
    NotAllowed(String),
    /// One process at a time.
    #[error("Another process uses the tap {0}")]
    InUse(String),
    /// Anything else.
    #[error("Cannot attach to the tap {name}")]
    Attach {
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// An old or strange driver.
    #[error("The tap {name} takes no virtio headers")]
    NoHeaders {
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// An attached tap. Dropping it takes its carrier away, or removes it if it was made by attaching.
#[derive(Debug)]
pub struct Tap {
    file: File,
    receive_offloads: u64,
}

impl Tap {
    /// Attaches to the tap called `name`, making it if it does not exist and rights allow.
    pub fn open(name: &str) -> Result<Self, OpenError> {
        let request = request(name)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(OpenError::Driver)?;
        attach(&file, name, request)?;
        set_header_size(&file, HEADER).map_err(|source| OpenError::NoHeaders {
            name: name.to_owned(),
            source,
        })?;
        let receive_offloads = probe(&file);
        if receive_offloads == 0 {
            tracing::warn!(
                tap = name,
                "The tap refuses every offload, so none is offered to the guest"
            );
        }
        Ok(Self {
            file,
            receive_offloads,
        })
    }

    /// The virtio-net feature bits that this tap stands for.
    pub fn features(&self) -> u64 {
        // A tap that refuses receive offloads still takes checksums and segments from us.
        self.receive_offloads | TRANSMIT_OFFLOADS
    }

    /// Lets the kernel leave to the guest what the guest said that it can do, and nothing else.
    pub fn set_offloads(&self, acked: u64) -> io::Result<()> {
        set_offloads(&self.file, acked & self.receive_offloads)
    }

    /// From now on each frame has a header of so many bytes before it, both ways.
    pub fn set_header(&self, bytes: usize) -> io::Result<()> {
        set_header_size(&self.file, bytes)
    }

    /// Reads the next frame, header first; "would block" when there is none.
    pub fn receive(&self, room: &mut VolatileSlice<'_>) -> io::Result<usize> {
        let length = (&self.file).read_volatile(room).map_err(into_io)?;
        // The driver promises to cut; whoever believes a length checks it.
        if length > room.len() {
            Err(io::ErrorKind::InvalidData.into())
        } else {
            Ok(length)
        }
    }

    /// Sends one frame, header first.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        rustix::io::write(&self.file, frame)?;
        Ok(())
    }

    /// A file that behaves as a tap: each read and write is one packet.
    #[cfg(test)]
    pub(crate) fn from_file(file: File) -> Self {
        Self {
            file,
            receive_offloads: 0,
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A read that failed because of the frame and not because of the tap; the next may succeed.
pub fn is_frames_fault(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EFAULT | libc::EINVAL | libc::EINTR)
    ) || error.kind() == io::ErrorKind::InvalidData
}

fn into_io(error: vm_memory::VolatileMemoryError) -> io::Error {
    match error {
        vm_memory::VolatileMemoryError::IOError(error) => error,
        other => io::Error::other(other),
    }
}

/// What names an interface to the kernel.
fn request(name: &str) -> Result<ifreq, OpenError> {
    let bytes = name.as_bytes();
    if bytes.is_empty()
        || bytes.len() >= libc::IFNAMSIZ
        || bytes.iter().any(|byte| *byte == 0 || *byte == b'/')
    {
        return Err(OpenError::Name(name.to_owned()));
    }
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    Ok(ifreq {
        ifr_name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 },
    })
}

fn attach(file: &File, name: &str, mut request: ifreq) -> Result<(), OpenError> {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    let first = set_interface(file, &request);
    let outcome = match first {
        // A tap that was made with several queues wants to be asked for one of them.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            request.ifr_ifru.ifru_flags = (flags | libc::IFF_MULTI_QUEUE) as libc::c_short;
            set_interface(file, &request)
        }
        other => other,
    };
    outcome.map_err(|source| match source.raw_os_error() {
        Some(libc::EPERM) => OpenError::NotAllowed(name.to_owned()),
        Some(libc::EBUSY) => OpenError::InUse(name.to_owned()),
        _ => OpenError::Attach {
            name: name.to_owned(),
            source,
        },
    })
}

/// The feature bits of what the tap can leave to the guest. Afterwards it leaves nothing.
fn probe(file: &File) -> u64 {
    let mut supported = 0;
    for (feature, _) in RECEIVE_OFFLOADS {
        // Segments make sense only with checksums, and the kernel takes ECN only with segments.
        let with = supported | 1 << feature;
        if set_offloads(file, with).is_ok() {
            supported = with;
        }
    }
    if set_offloads(file, 0).is_err() {
        return 0;
    }
    supported
}

fn set_offloads(file: &File, features: u64) -> io::Result<()> {
    let flags = RECEIVE_OFFLOADS
        .iter()
        .filter(|(feature, _)| features & 1 << feature != 0)
        .fold(0, |flags, (_, flag)| flags | flag);
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and TUNSETOFFLOAD takes its argument by value.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD as _, c_ulong::from(flags)) };
    check(outcome)
}

fn set_interface(file: &File, request: &ifreq) -> io::Result<()> {
    let mut request = *request;
    let place: *mut ifreq = &raw mut request;
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and TUNSETIFF reads and writes one ifreq at
    // its argument, which points to one that lives, exclusively ours, until the call returns.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, place) };
    check(outcome)
}

fn set_header_size(file: &File, bytes: usize) -> io::Result<()> {
    let size = bytes as c_int;
    let place: *const c_int = &raw const size;
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and TUNSETVNETHDRSZ reads one int at its
    // argument, which points to one that lives until the call returns.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, place) };
    check(outcome)
}

fn check(outcome: c_int) -> io::Result<()> {
    if outcome < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_has_are_refused_before_the_kernel_is_asked() {
        for name in ["", "sixteen-letters-", "a/b", "nul\0"] {
            assert!(matches!(Tap::open(name), Err(OpenError::Name(_))), "{name:?}");
        }
    }
}
