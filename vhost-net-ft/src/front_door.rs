//! The way in for front-ends: a relay between their connection and the vhost-user daemon, which QEMU does not fit into.
//!
//! QEMU (7.2 to 10) enables a network device's rings when the device is plugged in, before it has set any features, and
//! without the feature bit that SET_VRING_ENABLE belongs to it does not start the device at all. The vhost crate (0.18)
//! ends a connection over such an early message. So it is dropped here; QEMU says it again when the guest's driver
//! starts. Everything else passes as it is, descriptors included. Called by `serve.rs`, once for each front-end; it
//! carries set-up messages only and never sees a frame.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::limits::{MESSAGE_BYTES_MAX, MESSAGE_DESCRIPTORS_MAX};

const SET_FEATURES: u32 = 2;
const SET_VRING_ENABLE: u32 = 18;
const HEADER_BYTES: usize = 12;
/// Version 1, and "this is a reply".
const REPLY: u32 = 0b101;
const NEED_REPLY: u32 = 0b1000;

/// A socket for the daemon to connect to, gone as soon as it did.
#[derive(Debug)]
pub struct FrontDoor {
    listener: UnixListener,
    path: PathBuf,
}

impl FrontDoor {
    /// Makes the inner socket in the folder of the outer one.
    pub fn beside(socket: &Path) -> io::Result<Self> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".inner");
        let path = PathBuf::from(path);
        // A leftover of a process that was killed just then.
        let _ = std::fs::remove_file(&path);
        Ok(Self {
            listener: UnixListener::bind(&path)?,
            path,
        })
    }

    /// Lets the daemon connect with `start` and relays between it and `front_end` until either leaves.
    pub fn admit<E: From<io::Error>>(
        self,
        front_end: UnixStream,
        start: impl FnOnce(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        let path = self
            .path
            .to_str()
            .ok_or_else(|| io::Error::other("the socket's path is not text"))?;
        start(path)?;
        let (daemon, _) = self.listener.accept()?;
        let (mut answers, mut front) = (daemon.try_clone()?, front_end.try_clone()?);
        spawn("to-front-end", move || {
            // However it ends, it is over for both.
            let _ = io::copy(&mut answers, &mut front);
            let _ = front.shutdown(Shutdown::Both);
        })?;
        spawn("to-daemon", move || {
            let ended = Relay {
                front_end: &front_end,
                daemon: &daemon,
                features_set: false,
            }
            .run();
            tracing::debug!(?ended, "The front-end says no more");
            let _ = daemon.shutdown(Shutdown::Both);
        })?;
        Ok(())
    }
}

impl Drop for FrontDoor {
    fn drop(&mut self) {
        // Somebody else may have cleaned up before us.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map(drop)
}

/// From the front-end to the daemon, message by message.
struct Relay<'a> {
    front_end: &'a UnixStream,
    daemon: &'a UnixStream,
    features_set: bool,
}

impl Relay<'_> {
    /// Returns when somebody has left; the error says who or why.
    fn run(&mut self) -> io::Result<()> {
        let mut message = Vec::with_capacity(HEADER_BYTES + MESSAGE_BYTES_MAX);
        loop {
            message.resize(HEADER_BYTES, 0);
            let descriptors = receive(self.front_end, &mut message)?;
            let [request, flags, length] = words(&message);
            let length = length as usize;
            if length > MESSAGE_BYTES_MAX {
                return Err(io::Error::other("a message is longer than any of the protocol's"));
            }
            message.resize(HEADER_BYTES + length, 0);
            self.front_end.read_exact(&mut message[HEADER_BYTES..])?;
            self.features_set |= request == SET_FEATURES;
            if request == SET_VRING_ENABLE && !self.features_set {
                self.say_done(request, flags)?;
            } else {
                send(self.daemon, &message, &descriptors)?;
            }
        }
    }

    /// Answers for the daemon, if an answer is wanted.
    fn say_done(&mut self, request: u32, flags: u32) -> io::Result<()> {
        if flags & NEED_REPLY == 0 {
            return Ok(());
        }
        let header = [request, REPLY, 8].map(u32::to_ne_bytes).concat();
        self.front_end.write_all(&[header, vec![0; 8]].concat())
    }
}

fn words(message: &[u8]) -> [u32; 3] {
    [0, 4, 8].map(|at| {
        let word = message[at..at + 4].try_into().expect("a header has three words");
        u32::from_ne_bytes(word)
    })
}

/// Fills `header` and takes the descriptors that came with it.
fn receive(mut from: &UnixStream, header: &mut [u8]) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        from,
        &mut [IoSliceMut::new(header)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        })
        .flatten()
        .collect();
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    from.read_exact(&mut header[received.bytes..])?;
    Ok(descriptors)
}

fn send(mut to: &UnixStream, message: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other(
            "a message has more descriptors than any of the protocol's",
        ));
    }
    let sent = sendmsg(to, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)?;
    to.write_all(&message[sent..])
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
        let header = [request, flags, payload.len() as u32]
            .map(u32::to_ne_bytes)
            .concat();
        [&header, payload].concat()
    }

    /// What the daemon gets and what the front-end gets back when the front-end says all this and leaves.
    fn relayed(said: &[Vec<u8>]) -> (Vec<u8>, Vec<u8>) {
        let (mut outside, front_end) = UnixStream::pair().unwrap();
        let (daemon, mut inside) = UnixStream::pair().unwrap();
        said.iter()
            .for_each(|message| outside.write_all(message).unwrap());
        outside.shutdown(Shutdown::Write).unwrap();
        Relay {
            front_end: &front_end,
            daemon: &daemon,
            features_set: false,
        }
        .run()
        .unwrap_err();
        drop((front_end, daemon));
        let (mut got, mut back) = (Vec::new(), Vec::new());
        inside.read_to_end(&mut got).unwrap();
        outside.read_to_end(&mut back).unwrap();
        (got, back)
    }

    #[test]
    fn rings_enabled_before_features_are_set_are_enabled_only_afterwards() {
        let enable = message(SET_VRING_ENABLE, 1, &[1; 8]);
        let features = message(SET_FEATURES, 1, &[2; 8]);
        let (got, back) = relayed(&[enable.clone(), features.clone(), enable.clone()]);
        assert_eq!(got, [features, enable].concat());
        assert_eq!(back, b"");
    }

    #[test]
    fn whoever_waits_for_an_answer_to_a_dropped_message_gets_one() {
        let (got, back) = relayed(&[message(SET_VRING_ENABLE, 1 | NEED_REPLY, &[1; 8])]);
        assert_eq!(got, b"");
        assert_eq!(back, message(SET_VRING_ENABLE, REPLY, &[0; 8]));
    }

    #[test]
    fn a_message_of_impossible_length_ends_the_connection() {
        let long = [1_u32, 1, MESSAGE_BYTES_MAX as u32 + 1]
            .map(u32::to_ne_bytes)
            .concat();
        assert_eq!(relayed(&[long]), (vec![], vec![]));
    }

    #[test]
    fn descriptors_travel_with_their_message() {
        let (outside, front_end) = UnixStream::pair().unwrap();
        let (daemon, inside) = UnixStream::pair().unwrap();
        let given = outside.try_clone().unwrap();
        send(&outside, &message(5, 1, &[7; 40]), &[given.into()]).unwrap();
        drop(outside);
        Relay {
            front_end: &front_end,
            daemon: &daemon,
            features_set: false,
        }
        .run()
        .unwrap_err();
        let mut header = [0; HEADER_BYTES];
        let descriptors = receive(&inside, &mut header).unwrap();
        assert_eq!(words(&header), [5, 1, 40]);
        assert_eq!(descriptors.len(), 1);
        assert!(descriptors[0].as_raw_fd() >= 0);
    }
}
