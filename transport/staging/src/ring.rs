//! A single-producer, single-consumer ring of byte entries in shared memory.
//!
//! Used by both ends, never by anyone else. Indices count bytes and never wrap; an entry is an 8-byte header (length,
//! tag) and its payload, padded to 8 bytes; one that would cross the ring's end is preceded by a padding entry. Each
//! side keeps its own index privately and only publishes it, so what the other side scribbles over it does not matter.
//! The consumer takes one snapshot of the producer's index, checks it, and then believes only what lies before it.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use vm_memory::VolatileSlice;

use crate::memory::{RingPlace, SharedMemory, Which};

/// The other side said what an honest other side cannot say; the session must be closed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Fault {
    /// A ring index went backwards, out of the ring, or off its alignment.
    #[error("The other side moved a ring index from {from} to {to}, which is impossible")]
    Index {
        /// The index as we knew it.
        from: u64,
        /// The index as it is now.
        to: u64,
    },
    /// An entry is longer than what was published or than its ring allows.
    #[error("The other side published an entry of impossible length {0}")]
    Length(u32),
    /// An entry has a tag that its ring does not know.
    #[error("The other side published an entry of unknown kind {0}")]
    Kind(u32),
}

/// Why no entry could be reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReserveError {
    /// No room now; the consumer will make some.
    Full,
    /// Can never fit.
    TooLong,
    /// The consumer's index is a lie.
    Fault(Fault),
}

const HEADER: u64 = 8;
const ALIGN: u64 = 8;
/// Tag 0 is what fresh memory holds, so it is never valid.
const TAG_PADDING: u32 = u32::MAX;

/// The most payload an entry may have in a ring of this capacity: a quarter of it, header included.
pub(crate) const fn payload_max(capacity: u64) -> u64 {
    capacity / 4 - HEADER
}

const fn span(payload: u64) -> u64 {
    HEADER + payload.next_multiple_of(ALIGN)
}

const fn header(length: u32, tag: u32) -> u64 {
    length as u64 | (tag as u64) << 32
}

/// How many entries of `payload` bytes each, all alike, were produced and not consumed. The other side may lie about its
/// index, so this is for reports only.
pub(crate) fn entries_of(memory: &SharedMemory, which: Which, payload: usize) -> u64 {
    let place = memory.place(which);
    let consumed = memory.word(place.consumed).load(Ordering::Acquire);
    let produced = memory.word(place.produced).load(Ordering::Acquire);
    produced.saturating_sub(consumed).min(place.capacity) / span(payload as u64)
}

/// The writing side of a ring.
#[derive(Debug)]
pub(crate) struct Producer {
    memory: Arc<SharedMemory>,
    place: RingPlace,
    produced: u64,
    /// The consumer's index when we last looked: there is at least the room that it says.
    consumed: u64,
    blocked: bool,
}

/// Room for one entry; dropped without `commit` it leaves no trace.
#[derive(Debug)]
pub(crate) struct Slot<'a> {
    producer: &'a mut Producer,
    start: u64,
    room: u64,
}

impl Producer {
    pub(crate) fn new(memory: Arc<SharedMemory>, place: RingPlace) -> Self {
        Self {
            memory,
            place,
            produced: 0,
            consumed: 0,
            blocked: false,
        }
    }

    /// Room for an entry with up to `room` bytes of payload.
    pub(crate) fn reserve(&mut self, room: usize) -> Result<Slot<'_>, ReserveError> {
        let room = room as u64;
        if room > payload_max(self.place.capacity) {
            return Err(ReserveError::TooLong);
        }
        let offset = self.produced % self.place.capacity;
        let until_end = self.place.capacity - offset;
        let padding = if span(room) > until_end { until_end } else { 0 };
        if !self.has_room(padding + span(room)).map_err(ReserveError::Fault)? {
            return Err(ReserveError::Full);
        }
        if padding > 0 {
            let length = u32::try_from(padding - HEADER).expect("a ring is shorter than 4 GiB");
            self.write_header(offset, header(length, TAG_PADDING));
        }
        let start = self.produced + padding;
        Ok(Slot {
            producer: self,
            start,
            room,
        })
    }

    /// Whether an earlier `Full` is over by so much that any entry fits.
    pub(crate) fn may_proceed(&self) -> bool {
        self.blocked && self.used() <= self.place.capacity / 2
    }

    /// An earlier `Full` no longer matters.
    pub(crate) fn stop_waiting(&mut self) {
        self.set_blocked(false);
    }

    fn used(&self) -> u64 {
        self.produced
            .wrapping_sub(self.memory.word(self.place.consumed).load(Ordering::Acquire))
    }

    fn has_room(&mut self, needed: u64) -> Result<bool, Fault> {
        if self.fits(needed) {
            self.set_blocked(false);
            return Ok(true);
        }
        self.refresh()?;
        if !self.fits(needed) {
            // Say so first and look again: the consumer either sees the flag or we see its index.
            self.set_blocked(true);
            fence(Ordering::SeqCst);
            self.refresh()?;
        }
        let fits = self.fits(needed);
        self.set_blocked(!fits);
        Ok(fits)
    }

    fn fits(&self, needed: u64) -> bool {
        self.produced - self.consumed + needed <= self.place.capacity
    }

    fn refresh(&mut self) -> Result<(), Fault> {
        let to = self.memory.word(self.place.consumed).load(Ordering::Acquire);
        if to < self.consumed || to > self.produced || !to.is_multiple_of(ALIGN) {
            return Err(Fault::Index {
                from: self.consumed,
                to,
            });
        }
        self.consumed = to;
        Ok(())
    }

    fn set_blocked(&mut self, blocked: bool) {
        if self.blocked != blocked {
            self.blocked = blocked;
            self.memory
                .flag(self.place.producer_waits)
                .store(u32::from(blocked), Ordering::SeqCst);
        }
    }

    fn write_header(&self, offset: u64, value: u64) {
        self.memory
            .word(self.place.data + to_usize(offset))
            .store(value, Ordering::Relaxed);
    }
}

impl Slot<'_> {
    /// Where the payload goes: exactly the room asked for.
    pub(crate) fn bytes(&self) -> VolatileSlice<'_> {
        let offset = self.start % self.producer.place.capacity + HEADER;
        self.producer
            .memory
            .slice(self.producer.place.data + to_usize(offset), to_usize(self.room))
            .expect("reserve proved that the entry lies inside the ring")
    }

    /// Publishes the entry with its first `length` bytes of payload.
    pub(crate) fn commit(self, length: usize, tag: u32) {
        assert!(
            length as u64 <= self.room,
            "an entry was filled beyond the room reserved for it"
        );
        let length = u32::try_from(length).expect("a ring is shorter than 4 GiB");
        let producer = self.producer;
        producer.write_header(self.start % producer.place.capacity, header(length, tag));
        producer.produced = self.start + span(u64::from(length));
        producer
            .memory
            .word(producer.place.produced)
            .store(producer.produced, Ordering::Release);
    }
}

/// The reading side of a ring.
#[derive(Debug)]
pub(crate) struct Consumer {
    memory: Arc<SharedMemory>,
    place: RingPlace,
    consumed: u64,
    /// The producer's index when we last looked, checked.
    produced: u64,
}

impl Consumer {
    pub(crate) fn new(memory: Arc<SharedMemory>, place: RingPlace) -> Self {
        Self {
            memory,
            place,
            consumed: 0,
            produced: 0,
        }
    }

    /// Whether something was published that was not popped.
    pub(crate) fn has_entries(&self) -> bool {
        self.memory.word(self.place.produced).load(Ordering::Acquire) != self.consumed
    }

    /// Gives the oldest entry to `read` and takes it off the ring.
    pub(crate) fn pop<T>(
        &mut self,
        read: impl FnOnce(u32, &VolatileSlice<'_>) -> Result<T, Fault>,
    ) -> Result<Option<T>, Fault> {
        if !self.refresh()? {
            return Ok(None);
        }
        let (mut length, mut tag) = self.front();
        if tag == TAG_PADDING {
            self.skip_padding(length)?;
            // The entry that made the padding necessary was published together with it.
            if self.consumed == self.produced {
                return Err(Fault::Length(length));
            }
            (length, tag) = self.front();
        }
        let after = self.check(length)?;
        let offset = self.consumed % self.place.capacity + HEADER;
        let bytes = self
            .memory
            .slice(self.place.data + to_usize(offset), length as usize)
            .ok_or(Fault::Length(length))?;
        let value = read(tag, &bytes)?;
        self.consumed = after;
        self.memory
            .word(self.place.consumed)
            .store(after, Ordering::Release);
        Ok(Some(value))
    }

    /// Whether the producer waits for room and now has plenty; to be asked after popping.
    pub(crate) fn unblocks_producer(&self) -> bool {
        fence(Ordering::SeqCst);
        self.memory.flag(self.place.producer_waits).load(Ordering::SeqCst) != 0
            && self
                .memory
                .word(self.place.produced)
                .load(Ordering::Acquire)
                .wrapping_sub(self.consumed)
                <= self.place.capacity / 2
    }

    /// One checked snapshot of the producer's index, taken only when what we know of is used up.
    fn refresh(&mut self) -> Result<bool, Fault> {
        if self.produced == self.consumed {
            let to = self.memory.word(self.place.produced).load(Ordering::Acquire);
            let step = to.wrapping_sub(self.produced);
            if to < self.produced || step > self.place.capacity || !to.is_multiple_of(ALIGN) {
                return Err(Fault::Index {
                    from: self.produced,
                    to,
                });
            }
            self.produced = to;
        }
        Ok(self.produced != self.consumed)
    }

    /// The header is read once: what is checked is what is used.
    fn front(&self) -> (u32, u32) {
        let offset = self.place.data + to_usize(self.consumed % self.place.capacity);
        let value = self.memory.word(offset).load(Ordering::Relaxed);
        (value as u32, (value >> 32) as u32)
    }

    /// Proves that an entry of this length lies inside the ring and before the snapshot; says where it ends.
    fn check(&self, length: u32) -> Result<u64, Fault> {
        let whole = span(u64::from(length));
        let until_end = self.place.capacity - self.consumed % self.place.capacity;
        let published = self.produced - self.consumed;
        if u64::from(length) > payload_max(self.place.capacity) || whole > until_end || whole > published {
            return Err(Fault::Length(length));
        }
        Ok(self.consumed + whole)
    }

    fn skip_padding(&mut self, length: u32) -> Result<(), Fault> {
        let until_end = self.place.capacity - self.consumed % self.place.capacity;
        let whole = span(u64::from(length));
        if whole != until_end || whole > self.produced - self.consumed {
            return Err(Fault::Length(length));
        }
        self.consumed += whole;
        Ok(())
    }
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("ring offsets are bounded far below usize")
}

#[cfg(test)]
mod tests;
