//! The device process's end: stages inputs, pops orders, looks at the gate.
//!
//! Owned by the device's worker thread. It moves bytes and never decides whether an output may leave (the protocol's
//! `Outbox` does) nor touches guest memory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use lockstep_protocol::ids::{Head, LogOffset, QueueIndex};
use lockstep_protocol::outbox::Gate;
use thiserror::Error;
use vm_memory::{Bytes, VolatileSlice};
use zerocopy::{FromZeros, IntoBytes};

use crate::changes::{self, PairingId};
use crate::doorbell::Doorbell;
use crate::gate::{GateReader, Mode, wake};
use crate::limits::{COMPLETION_BYTES_MAX, FRAME_BYTES_MAX, UNTOLD_MAX};
use crate::memory::{SharedMemory, Which, word};
use crate::message::{Order, OrderBytes, StagedHeader, tag};
use crate::ring::{Consumer, Fault, Producer, ReserveError, Slot};
use crate::socket;

/// Why nothing was staged.
#[derive(Debug, Error)]
pub enum StageError {
    /// The VMM does not keep up; stop reading the outside. The doorbell rings when there is room.
    #[error("The staging ring is full")]
    Full,
    /// It can never fit.
    #[error("An input is longer than the staging ring allows")]
    TooLong,
    /// The VMM broke the ring; close the session.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The bytes could not be read; nothing was staged.
    #[error("The bytes to stage could not be read")]
    Io(#[from] io::Error),
}

impl From<ReserveError> for StageError {
    fn from(error: ReserveError) -> Self {
        match error {
            ReserveError::Full => Self::Full,
            ReserveError::TooLong => Self::TooLong,
            ReserveError::Fault(fault) => Self::Fault(fault),
        }
    }
}

/// One VMM, as a device process sees it.
#[derive(Debug)]
pub struct DeviceEnd {
    socket: OwnedFd,
    memory: Arc<SharedMemory>,
    completions: Producer,
    frames: Producer,
    orders: Consumer,
    doorbell: Doorbell,
    vmm_doorbell: Doorbell,
    vmm_release: String,
    gate: GateReader,
    /// What `look` saw last; a change keeps us from sleeping.
    seen: (Gate, Mode),
    waiting_for: Option<LogOffset>,
    /// Chains given back since the VMM was last woken for that.
    untold: u16,
    /// Completions were staged since the VMM was last woken.
    has_untold: bool,
    /// How many pairings have begun, as far as `pairing` has said.
    pairings: u64,
}

impl DeviceEnd {
    pub(crate) fn new(
        socket: OwnedFd,
        memory: SharedMemory,
        [doorbell, vmm_doorbell]: [Doorbell; 2],
        vmm_release: String,
    ) -> Self {
        let memory = Arc::new(memory);
        let producer = |which| Producer::new(memory.clone(), memory.place(which));
        let gate = GateReader::new(memory.clone());
        let seen = (gate.gate(), Mode::Quiet);
        Self {
            socket,
            completions: producer(Which::Completions),
            frames: producer(Which::Frames),
            orders: Consumer::new(memory.clone(), memory.place(Which::Orders)),
            doorbell,
            vmm_doorbell,
            vmm_release,
            gate,
            seen,
            waiting_for: None,
            untold: 0,
            has_untold: false,
            pairings: 0,
            memory,
        }
    }

    /// Lets `fill` write a frame of at most `room` bytes straight into the ring; it says how many it wrote.
    ///
    /// An error of `fill` (as "would block") stages nothing. Says how long the frame is.
    pub fn stage_frame(
        &mut self,
        room: usize,
        fill: impl FnOnce(&mut VolatileSlice<'_>) -> io::Result<usize>,
    ) -> Result<usize, StageError> {
        if room > FRAME_BYTES_MAX {
            return Err(StageError::TooLong);
        }
        let slot = self.frames.reserve(room)?;
        let length = fill(&mut slot.bytes())?;
        slot.commit(length, tag::FRAME);
        self.wake_vmm();
        Ok(length)
    }

    /// Frames are no longer wanted: room for one no longer keeps this end awake.
    pub fn stop_waiting_for_frames(&mut self) {
        self.frames.stop_waiting();
    }

    /// Lets `fill` write the `length` bytes of a completion straight into the ring. The VMM is not woken for it before
    /// [`Self::tell`] or the end of the work.
    pub fn stage_completion(
        &mut self,
        queue: QueueIndex,
        head: Head,
        length: usize,
        fill: impl FnOnce(&mut VolatileSlice<'_>) -> io::Result<()>,
    ) -> Result<(), StageError> {
        if length > COMPLETION_BYTES_MAX {
            return Err(StageError::TooLong);
        }
        let header = StagedHeader {
            queue: queue.get(),
            value: head.get(),
            reserved: 0,
        };
        let slot = reserve_staged(&mut self.completions, header, length)?;
        let mut payload = slot
            .bytes()
            .offset(size_of::<StagedHeader>())
            .expect("the slot is longer than its header");
        fill(&mut payload)?;
        slot.commit(size_of::<StagedHeader>() + length, tag::COMPLETION);
        self.has_untold = true;
        Ok(())
    }

    /// Wakes the VMM for the completions that were staged, if it sleeps.
    pub fn tell(&mut self) {
        if std::mem::take(&mut self.has_untold) {
            self.wake_vmm();
        }
    }

    /// Stages a completion whose bytes are at hand, in pieces (as read data and status byte).
    pub fn stage_completion_bytes(
        &mut self,
        queue: QueueIndex,
        head: Head,
        pieces: &[&[u8]],
    ) -> Result<(), StageError> {
        let length = pieces.iter().map(|piece| piece.len()).sum();
        self.stage_completion(queue, head, length, |room| {
            let mut at = 0;
            for piece in pieces {
                room.write_slice(piece, at).map_err(io::Error::other)?;
                at += piece.len();
            }
            Ok(())
        })
    }

    /// Whether a completion of this length would be staged now; so that a request is not begun in vain.
    pub fn has_room_for_completion(&mut self, length: usize) -> Result<bool, StageError> {
        match self.completions.reserve(size_of::<StagedHeader>() + length) {
            Ok(_) => Ok(true),
            Err(ReserveError::Full) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The oldest `count` heads in flight of this queue are done. The VMM is woken when there are many: by themselves they
    /// are no reason to wake a guest, so it finds a few when something else wakes it.
    pub fn stage_returned(&mut self, queue: QueueIndex, count: u16) -> Result<(), StageError> {
        let header = StagedHeader {
            queue: queue.get(),
            value: count,
            reserved: 0,
        };
        let slot = reserve_staged(&mut self.completions, header, 0)?;
        slot.commit(size_of::<StagedHeader>(), tag::RETURNED);
        self.untold = self.untold.saturating_add(count);
        if self.untold >= UNTOLD_MAX {
            self.untold = 0;
            self.wake_vmm();
        }
        Ok(())
    }

    /// The next chain to read.
    pub fn pop_order(&mut self) -> Result<Option<Order>, Fault> {
        let order = self.orders.pop(|tag, entry| {
            if tag != tag::ORDER {
                return Err(Fault::Kind(tag));
            }
            let mut body = OrderBytes::new_zeroed();
            let wrong = |_| Fault::Length(u32::try_from(entry.len()).unwrap_or(u32::MAX));
            entry.read_slice(body.as_mut_bytes(), 0).map_err(wrong)?;
            Ok(Order::from(body))
        })?;
        if order.is_some() && self.orders.unblocks_producer() {
            self.wake_vmm();
        }
        Ok(order)
    }

    /// What the gate says now. To be asked right before each output leaves.
    pub fn gate(&mut self) -> Gate {
        self.seen.0 = self.gate.gate();
        self.seen.0
    }

    /// What the VMM wants of this process now.
    pub fn mode(&mut self) -> Mode {
        self.seen.1 = self.gate.mode();
        self.seen.1
    }

    /// The pairing that began, once. What was popped from the orders before this was asked may belong to it already.
    pub fn pairing(&mut self) -> Option<PairingId> {
        let (count, id) = changes::pairing(&self.memory);
        let is_new = count != self.pairings;
        self.pairings = count;
        is_new.then_some(id)
    }

    /// Tells the VMM that a block of the disk image was changed.
    pub fn note_changed(&self, block: u32) {
        changes::note(&self.memory, block);
    }

    /// Tells the VMM what the oldest held output waits for and how many are held. Call after each change.
    pub fn publish_waiting(&mut self, waiting_for: Option<LogOffset>, held: usize) {
        self.waiting_for = waiting_for;
        self.memory.word(word::HELD).store(held as u64, Ordering::Relaxed);
        self.memory
            .word(word::WAITING_FOR)
            .store(waiting_for.map_or(u64::MAX, LogOffset::get), Ordering::SeqCst);
    }

    /// Counts outputs that left, for the VMM's status.
    pub fn count_released(&self, count: u64) {
        self.memory
            .word(word::RELEASED)
            .fetch_add(count, Ordering::Relaxed);
    }

    /// What to poll while sleeping.
    pub fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    /// Says that this end is about to sleep. `false`: do not, there is something to do.
    ///
    /// Something to do is: an order, if this end `takes_orders` at all just now (a full outbox takes none); room after a
    /// `Full`; another mode than `mode` said last; or a gate that changed since `gate` was asked last and whose acks cover
    /// what we wait for. Call `publish_waiting` before. The VMM is told of what was staged.
    pub fn prepare_sleep(&mut self, takes_orders: bool) -> bool {
        self.tell();
        let sleeps = self.memory.flag(word::DEVICE_SLEEPS);
        sleeps.store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let gate = self.gate.gate();
        let (seen, seen_mode) = self.seen;
        let moved = gate.acked != seen.acked || gate.lease_until != seen.lease_until;
        let releasable = self.waiting_for.is_some_and(|needs| moved && needs <= gate.acked);
        let room = self.completions.may_proceed() || self.frames.may_proceed();
        let ordered = takes_orders && self.orders.has_entries();
        if ordered || room || releasable || self.gate.mode() != seen_mode {
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
        self.memory.flag(word::DEVICE_SLEEPS).store(0, Ordering::SeqCst);
    }

    /// Poll this for reading or hang-up: both mean that [`Self::is_hung_up`] should be asked.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether the VMM is gone.
    pub fn is_hung_up(&self) -> bool {
        socket::is_hung_up(&self.socket)
    }

    /// The VMM's release, for logs.
    pub fn vmm_release(&self) -> &str {
        &self.vmm_release
    }

    fn wake_vmm(&self) {
        wake(&self.memory, word::VMM_SLEEPS, &self.vmm_doorbell);
    }
}

/// A slot with its header already in place.
fn reserve_staged(
    ring: &mut Producer,
    header: StagedHeader,
    length: usize,
) -> Result<Slot<'_>, ReserveError> {
    let slot = ring.reserve(size_of::<StagedHeader>() + length)?;
    slot.bytes().copy_from(header.as_bytes());
    Ok(slot)
}
