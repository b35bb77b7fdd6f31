//! The Unix seqpacket socket of set-up: one message each way, descriptors beside it, and afterwards only its hang-up.
//!
//! Used by both ends. Knows packets and descriptors, not what they mean.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::io::retry_on_intr;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, recvmsg, sendmsg, socket_with, sockopt,
};

/// The most descriptors that one packet carries.
pub(crate) const DESCRIPTORS_MAX: usize = 3;

/// How many connectors may queue while one is served.
const BACKLOG: i32 = 4;

/// A packet with its descriptors; whatever was received beyond them was closed by its drop.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) length: usize,
    pub(crate) descriptors: Vec<OwnedFd>,
}

fn new_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | flags,
        None,
    )?)
}

/// A non-blocking listener at `path`.
pub(crate) fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    let socket = new_socket(SocketFlags::NONBLOCK)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// The next connector, as a blocking socket; `None` when there is none.
pub(crate) fn accept_at(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    match accept_with(listener, SocketFlags::CLOEXEC) {
        Ok(socket) => Ok(Some(socket)),
        // A connector that left again is no connector.
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Connects once. A listener whose queue is full is waited for no longer than this.
pub(crate) fn connect_to(path: &Path, limit: Duration) -> io::Result<OwnedFd> {
    let socket = new_socket(SocketFlags::empty())?;
    limit_waiting(socket.as_fd(), limit)?;
    let address = SocketAddrUnix::new(path)?;
    retry_on_intr(|| connect(&socket, &address))?;
    Ok(socket)
}

/// Looks whether somebody listens, and leaves again. Never waits.
pub(crate) fn knock_at(path: &Path) -> io::Result<()> {
    let socket = new_socket(SocketFlags::NONBLOCK)?;
    Ok(connect(&socket, &SocketAddrUnix::new(path)?)?)
}

/// No send or receive on this socket takes longer than this.
pub(crate) fn limit_waiting(socket: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    // A zero time-out would mean "for ever".
    let timeout = timeout.max(Duration::from_millis(1));
    sockopt::set_socket_timeout(socket, sockopt::Timeout::Recv, Some(timeout))?;
    sockopt::set_socket_timeout(socket, sockopt::Timeout::Send, Some(timeout))?;
    Ok(())
}

/// Sends one packet.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(
            control.push(SendAncillaryMessage::ScmRights(descriptors)),
            "no packet has more descriptors"
        );
    }
    // A limit on waiting is not kept across a signal: the kernel leaves it to us to go on.
    let sent = retry_on_intr(|| sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL))?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// Receives one packet; a packet of length 0 is a hang-up, one longer than `bytes` is cut and says so by its length.
pub(crate) fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<Packet> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = retry_on_intr(|| {
        recvmsg(
            socket,
            &mut [IoSliceMut::new(bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let cut = usize::from(received.flags.contains(ReturnFlags::TRUNC));
    Ok(Packet {
        length: received.bytes + cut,
        descriptors,
    })
}

/// Whether the other side has closed its end: after set-up nothing else ever comes over the socket.
pub(crate) fn is_hung_up(socket: impl AsFd) -> bool {
    let mut byte = [0_u8; 1];
    let fd = socket.as_fd();
    match rustix::net::recv(fd, &mut byte[..], RecvFlags::DONTWAIT) {
        Ok((0, _)) => true,
        // Chatter is ignored; there is nothing to say after set-up.
        Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => false,
        Err(_) => true,
    }
}
