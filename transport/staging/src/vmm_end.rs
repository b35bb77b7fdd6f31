//! The VMM's end: connects, makes the shared memory, pops what was staged, pushes orders.
//!
//! Owned by the vCPU thread, which looks at it in windows and while it idles. The gate is written by another thread
//! through [`GateWriter`]. This end never touches guest memory and knows nothing of the log.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use lockstep_protocol::ids::LogOffset;
use thiserror::Error;
use zerocopy::{FromZeros, IntoBytes};

use crate::changes::{self, ChangesReader, PairingId};
use crate::deferral::Deferral;
use crate::doorbell::Doorbell;
use crate::entry;
use crate::gate::{GateWriter, wake};
use crate::limits::{
    BLK_COMPLETIONS_RING, BLK_FRAMES_RING, DEFERRED_MAX, IMAGE_PATIENCE, NET_COMPLETIONS_RING,
    NET_FRAMES_RING, ORDERS_RING,
};
use crate::memory::{MemoryError, RingSizes, SharedMemory, Which, word};
use crate::message::{
    Answer, DeviceFacts, DeviceKind, MAGIC, Order, OrderBytes, Request, Staged, VERDICT_ACCEPTED,
    VERDICT_REFUSED, VERSION, VmmFacts, tag,
};
use crate::ring::{Consumer, Fault, Producer, ReserveError};
use crate::socket;

/// How long to wait before trying again to reach a device process that does not listen yet.
const CONNECT_RETRY: Duration = Duration::from_millis(5);

/// Why no device process could be reached or agreed with.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Nobody listens there.
    #[error("No device process listens at {path}")]
    NobodyListens {
        /// The socket.
        path: String,
        /// What the kernel said last.
        source: io::Error,
    },
    /// The shared memory could not be made.
    #[error("The shared memory for staging could not be made")]
    Memory(#[from] MemoryError),
    /// The doorbells could not be made.
    #[error("A doorbell could not be made")]
    Doorbell(#[source] io::Error),
    /// The socket broke or nothing came in time.
    #[error("The device process at {path} did not answer")]
    NoAnswer {
        /// The socket.
        path: String,
        /// What happened.
        source: io::Error,
    },
    /// It said no, and why.
    #[error("The device process at {path} refused: {reason}")]
    Refused {
        /// The socket.
        path: String,
        /// In its words.
        reason: String,
    },
    /// It speaks another version of staging.
    #[error("The device process at {path} speaks staging version {theirs}, this VMM speaks {VERSION}")]
    Version {
        /// The socket.
        path: String,
        /// Their version.
        theirs: u32,
    },
    /// Whatever listens there is no device process of ours.
    #[error("The process at {path} gave an answer that makes no sense")]
    Nonsense {
        /// The socket.
        path: String,
    },
}

/// Why an order was not taken.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PushError {
    /// The device process does not keep up; its doorbell will tell when it did.
    #[error("The device process has not read its earlier orders yet")]
    Full,
    /// The session must be closed.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// One device, as its VMM sees it.
#[derive(Debug)]
pub struct VmmEnd {
    socket: OwnedFd,
    memory: Arc<SharedMemory>,
    completions: Consumer,
    frames: Consumer,
    orders: Producer,
    deferral: Arc<Deferral>,
    /// How many orders were deferred since the device process was last woken for one, or more.
    deferred: usize,
    doorbell: Doorbell,
    device_doorbell: Arc<Doorbell>,
}

impl VmmEnd {
    /// Reaches the device process at `path`, waiting up to `timeout` for it to listen and to answer. One that has to read
    /// a disk image first may take longer.
    pub fn connect(
        path: &Path,
        facts: &VmmFacts,
        timeout: Duration,
    ) -> Result<(Self, DeviceFacts), ConnectError> {
        let name = || path.display().to_string();
        let socket = reach(path, timeout)?;
        let sizes = sizes_for(facts.kind);
        let (memory, file) = SharedMemory::create(sizes)?;
        memory.word(word::WAITING_FOR).store(u64::MAX, Ordering::SeqCst);
        let doorbell = Doorbell::new().map_err(ConnectError::Doorbell)?;
        let device_doorbell = Doorbell::new().map_err(ConnectError::Doorbell)?;
        let answer = ask(
            socket.as_fd(),
            &Request::new(facts, sizes),
            &file,
            [&device_doorbell, &doorbell],
            if facts.compares_images {
                IMAGE_PATIENCE
            } else {
                timeout
            },
        )
        .map_err(|source| ConnectError::NoAnswer { path: name(), source })?;
        let device = judge(&answer, path, facts.kind)?;
        let memory = Arc::new(memory);
        let consumer = |which| Consumer::new(memory.clone(), memory.place(which));
        let end = Self {
            socket,
            completions: consumer(Which::Completions),
            frames: consumer(Which::Frames),
            orders: Producer::new(memory.clone(), memory.place(Which::Orders)),
            deferral: Arc::default(),
            deferred: 0,
            doorbell,
            device_doorbell: Arc::new(device_doorbell),
            memory,
        };
        Ok((end, device))
    }

    /// The oldest thing on the completions ring. The bytes of a completion replace what is in `bytes`.
    pub fn pop_completion(&mut self, bytes: &mut Vec<u8>) -> Result<Option<Staged>, Fault> {
        let staged = self
            .completions
            .pop(|tag, entry| entry::read_staged(tag, entry, bytes))?;
        self.give_room(staged.is_some(), self.completions.unblocks_producer());
        Ok(staged)
    }

    /// The oldest frame, virtio header first; it replaces what is in `bytes`. Says how long it is.
    pub fn pop_frame(&mut self, bytes: &mut Vec<u8>) -> Result<Option<usize>, Fault> {
        let length = self
            .frames
            .pop(|tag, entry| entry::read_frame(tag, entry, bytes))?;
        self.give_room(length.is_some(), self.frames.unblocks_producer());
        Ok(length)
    }

    /// Whether there is something to pop. Two loads; cheap enough for every window.
    pub fn has_inputs(&self) -> bool {
        self.completions.has_entries() || self.frames.has_entries()
    }

    /// Hands a head over; call [`Self::flush_orders`] or [`Self::defer_orders`] after the last one of a window.
    pub fn push_order(&mut self, order: Order) -> Result<(), PushError> {
        let body = OrderBytes::from(order);
        let slot = self
            .orders
            .reserve(size_of::<OrderBytes>())
            .map_err(|error| match error {
                ReserveError::Full => PushError::Full,
                ReserveError::Fault(fault) => PushError::Fault(fault),
                ReserveError::TooLong => {
                    unreachable!("an order is 16 bytes, and no ring is smaller than a page")
                }
            })?;
        slot.bytes().copy_from(body.as_bytes());
        slot.commit(size_of::<OrderBytes>(), tag::ORDER);
        Ok(())
    }

    /// Wakes the device process if it sleeps.
    pub fn flush_orders(&self) {
        self.deferral.claim();
        wake(&self.memory, word::DEVICE_SLEEPS, &self.device_doorbell);
    }

    /// Lets the device process sleep until `needs` is acked, if it sleeps: of the last `count` orders nothing could
    /// leave before. It is woken all the same when many wait, so that their chains go back to the guest.
    pub fn defer_orders(&mut self, needs: LogOffset, count: usize) {
        let before = if self.deferral.add(needs) {
            0
        } else {
            self.deferred
        };
        self.deferred = before + count;
        // An ack that came just before this found nothing deferred.
        fence(Ordering::SeqCst);
        let acked = self.memory.word(word::ACKED).load(Ordering::SeqCst);
        if self.deferred > DEFERRED_MAX || needs.get() <= acked {
            self.flush_orders();
        }
    }

    /// What to poll while sleeping.
    pub fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    /// Says that this end is about to sleep. `false`: do not, something came meanwhile.
    pub fn prepare_sleep(&self) -> bool {
        let sleeps = self.memory.flag(word::VMM_SLEEPS);
        sleeps.store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if self.has_inputs() || self.orders.may_proceed() {
            sleeps.store(0, Ordering::SeqCst);
            return false;
        }
        true
    }

    /// Ends a sleep, whatever woke us, and makes the doorbell silent.
    pub fn wake_up(&self) {
        self.end_sleep();
        self.doorbell.drain();
    }

    /// Ends a sleep. Who saw the doorbell ring drains it as well: that is a system call, which others need not make.
    pub fn end_sleep(&self) {
        self.memory.flag(word::VMM_SLEEPS).store(0, Ordering::SeqCst);
    }

    /// Poll this for a hang-up: the device process is gone then. Nothing has to be read from it.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The gate, for the thread that hears acks.
    pub fn gate(&self) -> GateWriter {
        GateWriter::new(
            self.memory.clone(),
            self.deferral.clone(),
            self.device_doorbell.clone(),
        )
    }

    /// Two hosts with equal images are a pair from now on; nothing is in flight. What is ordered afterwards changes both.
    pub fn begin_pairing(&self, id: PairingId) {
        changes::begin_pairing(&self.memory, id);
    }

    /// Which blocks of its image a disk process has changed, for whoever copies it.
    pub fn changes(&self) -> ChangesReader {
        ChangesReader::new(self.memory.clone())
    }

    fn give_room(&self, popped: bool, producer_waits: bool) {
        if popped && producer_waits {
            wake(&self.memory, word::DEVICE_SLEEPS, &self.device_doorbell);
        }
    }
}

fn sizes_for(kind: DeviceKind) -> RingSizes {
    match kind {
        DeviceKind::Net => RingSizes {
            completions: NET_COMPLETIONS_RING,
            frames: NET_FRAMES_RING,
            orders: ORDERS_RING,
        },
        DeviceKind::Blk => RingSizes {
            completions: BLK_COMPLETIONS_RING,
            frames: BLK_FRAMES_RING,
            orders: ORDERS_RING,
        },
    }
}

/// Connects, trying again while the process is not up yet.
fn reach(path: &Path, timeout: Duration) -> Result<OwnedFd, ConnectError> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let source = match socket::connect_to(path, left) {
            Ok(socket) => return Ok(socket),
            Err(source) if Instant::now() >= deadline || !is_not_up_yet(&source) => source,
            Err(_) => {
                std::thread::sleep(CONNECT_RETRY);
                continue;
            }
        };
        let path = path.display().to_string();
        return Err(match source.kind() {
            // It is there, and others before us were not taken in yet.
            io::ErrorKind::WouldBlock => ConnectError::NoAnswer { path, source },
            _ => ConnectError::NobodyListens { path, source },
        });
    }
}

fn is_not_up_yet(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
    )
}

fn ask(
    socket: BorrowedFd<'_>,
    request: &Request,
    memory: &File,
    [device_doorbell, doorbell]: [&Doorbell; 2],
    timeout: Duration,
) -> io::Result<Answer> {
    socket::limit_waiting(socket, timeout)?;
    socket::send(
        socket,
        request.as_bytes(),
        &[memory.as_fd(), device_doorbell.as_fd(), doorbell.as_fd()],
    )?;
    let mut answer = Answer::new_zeroed();
    match socket::receive(socket, answer.as_mut_bytes())?.length {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(answer),
    }
}

fn judge(answer: &Answer, path: &Path, wanted: DeviceKind) -> Result<DeviceFacts, ConnectError> {
    let path = path.display().to_string();
    if answer.magic != MAGIC {
        return Err(ConnectError::Nonsense { path });
    }
    match answer.verdict {
        VERDICT_REFUSED => Err(ConnectError::Refused {
            path,
            reason: answer.reason(),
        }),
        VERDICT_ACCEPTED if answer.version != VERSION => Err(ConnectError::Version {
            path,
            theirs: answer.version,
        }),
        VERDICT_ACCEPTED => answer
            .facts()
            .filter(|facts| facts.kind == wanted)
            .ok_or(ConnectError::Nonsense { path }),
        _ => Err(ConnectError::Nonsense { path }),
    }
}
