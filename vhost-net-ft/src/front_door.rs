//! The way in for front-ends: a relay between their connection and the vhost-user daemon, which QEMU does not fit into.
//!
//! QEMU (seen with 7.2) enables a network device's rings before it sets the features, and without the feature bit that
//! SET_VRING_ENABLE belongs to it does not start the device at all. The vhost crate (0.18) ends a connection over such
//! an early message. So it is kept here and handed on right behind the next SET_FEATURES. That is so again after each
//! reset, which makes the daemon forget the features: QEMU from 9.1 on asks for one whenever the guest restarts.
//! Everything else passes as it is, descriptors included. Called by `serve.rs`, once for each front-end; it carries
//! set-up messages only and never sees a frame.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use lockstep_staging::BindError;
use lockstep_staging::place::make_room;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::limits::{MESSAGE_BYTES_MAX, MESSAGE_DESCRIPTORS_MAX, QUEUES};

const SET_FEATURES: u32 = 2;
const RESET_OWNER: u32 = 4;
const SET_VRING_ENABLE: u32 = 18;
const RESET_DEVICE: u32 = 34;
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
    pub fn beside(socket: &Path) -> Result<Self, BindError> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".inner");
        let path = PathBuf::from(path);
        // One is left over when a process was killed just then.
        make_room(&path)?;
        match UnixListener::bind(&path) {
            Ok(listener) => Ok(Self { listener, path }),
            Err(source) => Err(BindError::Os { path, source }),
        }
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
            let ended = Relay::new(&front_end, &daemon).run();
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
    /// What was said of each ring too early: the last word counts.
    early: BTreeMap<u32, Vec<u8>>,
}

impl<'a> Relay<'a> {
    fn new(front_end: &'a UnixStream, daemon: &'a UnixStream) -> Self {
        Self {
            front_end,
            daemon,
            features_set: false,
            early: BTreeMap::new(),
        }
    }

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
            if request == SET_VRING_ENABLE && !self.features_set {
                self.keep(&message)?;
                self.say_done(request, flags)?;
                continue;
            }
            send(self.daemon, &message, &descriptors)?;
            match request {
                SET_FEATURES => self.hand_on()?,
                RESET_OWNER | RESET_DEVICE => self.start_over(),
                _ => {}
            }
        }
    }

    /// The daemon knows the features now: it takes what came too early.
    fn hand_on(&mut self) -> io::Result<()> {
        self.features_set = true;
        std::mem::take(&mut self.early)
            .values()
            .try_for_each(|kept| send(self.daemon, kept, &[]))
    }

    /// The daemon has forgotten the features; and a reset stops every ring, so what was kept before means nothing now.
    fn start_over(&mut self) {
        self.features_set = false;
        self.early.clear();
    }

    /// Keeps an early message for later; nobody waits for its answer any more then.
    fn keep(&mut self, message: &[u8]) -> io::Result<()> {
        let ring = message.get(HEADER_BYTES..HEADER_BYTES + 4).map(word);
        let Some(ring) = ring.filter(|ring| (*ring as usize) < QUEUES) else {
            return Err(io::Error::other(
                "a ring is enabled that this device does not have",
            ));
        };
        let [_, flags, _] = words(message);
        let mut kept = message.to_vec();
        kept[4..8].copy_from_slice(&(flags & !NEED_REPLY).to_ne_bytes());
        self.early.insert(ring, kept);
        Ok(())
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
    [0, 4, 8].map(|at| word(&message[at..at + 4]))
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes(bytes.try_into().expect("a word has four bytes"))
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
        Relay::new(&front_end, &daemon).run().unwrap_err();
        drop((front_end, daemon));
        let (mut got, mut back) = (Vec::new(), Vec::new());
        inside.read_to_end(&mut got).unwrap();
        outside.read_to_end(&mut back).unwrap();
        (got, back)
    }

    fn enable(ring: u32, flags: u32, on: u32) -> Vec<u8> {
        message(
            SET_VRING_ENABLE,
            flags,
            &[ring, on].map(u32::to_ne_bytes).concat(),
        )
    }

    #[test]
    fn rings_enabled_before_features_are_set_are_enabled_right_after() {
        let features = message(SET_FEATURES, 1, &[2; 8]);
        let said = [
            enable(0, 1, 0),
            enable(1, 1, 1),
            enable(0, 1, 1),
            features.clone(),
            enable(0, 1, 0),
        ];
        let (got, back) = relayed(&said);
        assert_eq!(
            got,
            [features, enable(0, 1, 1), enable(1, 1, 1), enable(0, 1, 0)].concat()
        );
        assert_eq!(back, b"");
    }

    #[test]
    fn rings_enabled_after_a_reset_wait_for_the_features_to_be_set_again() {
        let features = message(SET_FEATURES, 1, &[2; 8]);
        for request in [RESET_DEVICE, RESET_OWNER] {
            let reset = message(request, 1, &[]);
            let before = [features.clone(), enable(0, 1, 1), reset].concat();
            let enabled = [enable(0, 1, 1), enable(1, 1, 1)].concat();
            let (got, _) = relayed(&[before.clone(), enabled.clone(), features.clone()]);
            assert_eq!(got, [before, features.clone(), enabled].concat());
        }
    }

    #[test]
    fn what_was_said_of_a_ring_before_a_reset_is_forgotten() {
        let (features, reset) = (message(SET_FEATURES, 1, &[2; 8]), message(RESET_DEVICE, 1, &[]));
        let (got, _) = relayed(&[enable(0, 1, 1), reset.clone(), features.clone()]);
        assert_eq!(got, [reset, features].concat());
    }

    #[test]
    fn whoever_waits_for_an_answer_to_an_early_message_gets_one_and_no_second() {
        let features = message(SET_FEATURES, 1, &[2; 8]);
        let (got, back) = relayed(&[enable(1, 1 | NEED_REPLY, 1), features.clone()]);
        assert_eq!(got, [features, enable(1, 1, 1)].concat());
        assert_eq!(back, message(SET_VRING_ENABLE, REPLY, &[0; 8]));
    }

    #[test]
    fn a_ring_that_nobody_has_ends_the_connection() {
        assert_eq!(relayed(&[enable(2, 1, 1)]), (vec![], vec![]));
        assert_eq!(
            relayed(&[message(SET_VRING_ENABLE, 1, &[0; 2])]),
            (vec![], vec![])
        );
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
        let given = std::fs::File::open("/dev/null").unwrap();
        send(&outside, &message(5, 1, &[7; 40]), &[given.into()]).unwrap();
        drop(outside);
        Relay::new(&front_end, &daemon).run().unwrap_err();
        let mut header = [0; HEADER_BYTES];
        let descriptors = receive(&inside, &mut header).unwrap();
        assert_eq!(words(&header), [5, 1, 40]);
        assert_eq!(descriptors.len(), 1);
        assert!(descriptors[0].as_raw_fd() >= 0);
    }
}
