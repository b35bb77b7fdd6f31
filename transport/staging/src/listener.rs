//! Where a device process waits for its VMM: the staging socket, and the check of what a VMM brings.
//!
//! Owned by the device's worker thread. One VMM at a time; whoever else connects is refused with a reason. It maps
//! nothing that was not checked, and it never waits for a connector for longer than half a second.

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use zerocopy::{FromZeros, IntoBytes};

use crate::device_end::DeviceEnd;
use crate::doorbell::Doorbell;
use crate::limits::{COMPLETION_BYTES_MAX, FRAME_BYTES_MAX};
use crate::memory::{MemoryError, RingSizes, SharedMemory};
use crate::message::{Answer, DeviceFacts, DeviceKind, MAGIC, Request, StagedHeader, VERSION, VmmFacts};
use crate::place::{BindError, make_room};
use crate::ring::payload_max;
use crate::socket::{self, DESCRIPTORS_MAX};

/// A connector that says nothing for this long is sent away; the worker thread waits for it.
const SETUP_TIMEOUT: Duration = Duration::from_millis(500);

/// The same for one that will be sent away in any case.
const REFUSE_TIMEOUT: Duration = Duration::from_millis(50);

/// Why a connector did not become our VMM. The listener goes on.
#[derive(Debug, Error)]
pub enum AcceptError {
    /// It was sent away with this reason.
    #[error("A VMM was refused: {0}")]
    Refused(String),
    /// The socket broke, or nothing came in time.
    #[error("A VMM connected and did not complete the set-up")]
    Socket(#[from] io::Error),
}

/// The staging socket of a device process; removed from the file system when dropped.
#[derive(Debug)]
pub struct DeviceListener {
    socket: OwnedFd,
    path: PathBuf,
}

impl DeviceListener {
    /// Listens at `path`. A socket that a dead process left behind is replaced.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        make_room(path)?;
        let socket = socket::listen_at(path).map_err(|source| BindError::Os {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            socket,
            path: path.to_owned(),
        })
    }

    /// Sets up with the next connector; `None` when there is none. Waits at most half a second for it to speak. `facts`
    /// is asked what a VMM that passed the checks is told, or why it is sent away.
    pub fn accept(
        &self,
        kind: DeviceKind,
        facts: impl FnOnce(&VmmFacts) -> Result<DeviceFacts, String>,
    ) -> Result<Option<DeviceEnd>, AcceptError> {
        let Some(socket) = socket::accept_at(self.socket.as_fd())? else {
            return Ok(None);
        };
        socket::limit_waiting(socket.as_fd(), SETUP_TIMEOUT)?;
        let mut request = Request::new_zeroed();
        let packet = socket::receive(socket.as_fd(), request.as_mut_bytes())?;
        if packet.length == 0 {
            return Err(AcceptError::Socket(io::ErrorKind::UnexpectedEof.into()));
        }
        let opened = open(&request, packet.length, packet.descriptors, kind)
            .and_then(|opened| facts(&opened.vmm).map(|facts| (opened, facts)));
        match opened {
            Ok((opened, facts)) => {
                socket::send(socket.as_fd(), Answer::accepted(&facts).as_bytes(), &[])?;
                let Opened {
                    memory,
                    doorbells,
                    vmm,
                } = opened;
                Ok(Some(DeviceEnd::new(socket, memory, doorbells, vmm.release)))
            }
            Err(reason) => {
                socket::send(socket.as_fd(), Answer::refused(&reason).as_bytes(), &[])?;
                Err(AcceptError::Refused(reason))
            }
        }
    }

    /// Sends the next connector away, whatever it wants.
    pub fn refuse(&self, reason: &str) {
        let Ok(Some(socket)) = socket::accept_at(self.socket.as_fd()) else {
            return;
        };
        // One that does not speak or listen does not learn why. The request is taken off the socket first: closing
        // a socket with something unread would tear away the answer.
        let _ = socket::limit_waiting(socket.as_fd(), REFUSE_TIMEOUT)
            .and_then(|()| socket::receive(socket.as_fd(), Request::new_zeroed().as_mut_bytes()))
            .and_then(|_| socket::send(socket.as_fd(), Answer::refused(reason).as_bytes(), &[]));
    }
}

impl Drop for DeviceListener {
    fn drop(&mut self) {
        // Somebody else may have cleaned up before us.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl AsFd for DeviceListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for DeviceListener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// What a connector brought, checked.
struct Opened {
    memory: SharedMemory,
    /// The device's, then the VMM's.
    doorbells: [Doorbell; 2],
    vmm: VmmFacts,
}

/// Checks a request and maps what came with it; the error is the reason of the refusal.
fn open(
    request: &Request,
    length: usize,
    descriptors: Vec<OwnedFd>,
    kind: DeviceKind,
) -> Result<Opened, String> {
    // Magic and version lie in the first 12 bytes of every version.
    if length < 12 || request.magic != MAGIC {
        return Err("This is the staging socket of a Lockstep device process".to_owned());
    }
    if request.version != VERSION || length != size_of::<Request>() {
        return Err(format!(
            "The VMM speaks staging version {}, this device speaks {VERSION}",
            request.version
        ));
    }
    let vmm = match request.facts() {
        Some(vmm) if vmm.kind == kind => vmm,
        other => {
            let wanted = other.map_or("another kind".to_owned(), |vmm| vmm.kind.to_string());
            return Err(format!("The VMM wants a {wanted}, this is a {kind}"));
        }
    };
    check_sizes(request.sizes(), kind)?;
    let [memory, device_doorbell, vmm_doorbell] = <[OwnedFd; DESCRIPTORS_MAX]>::try_from(descriptors)
        .map_err(|given| {
            format!(
                "The set-up came with {} descriptors instead of {DESCRIPTORS_MAX}",
                given.len()
            )
        })?;
    let memory = SharedMemory::open(memory, request.sizes()).map_err(|error| match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    })?;
    Ok(Opened {
        memory,
        doorbells: [device_doorbell, vmm_doorbell].map(Doorbell::from_fd),
        vmm,
    })
}

/// The ring that carries the largest entries of this kind of device has to be able to.
fn check_sizes(sizes: RingSizes, kind: DeviceKind) -> Result<(), String> {
    let sizes = sizes.check().map_err(|error: MemoryError| error.to_string())?;
    let (ring, needed) = match kind {
        DeviceKind::Net => (sizes.frames, FRAME_BYTES_MAX),
        DeviceKind::Blk => (
            sizes.completions,
            COMPLETION_BYTES_MAX + size_of::<StagedHeader>(),
        ),
    };
    if payload_max(ring) < needed as u64 {
        return Err(format!(
            "A ring of {ring} bytes is too small for entries of {needed} bytes"
        ));
    }
    Ok(())
}
