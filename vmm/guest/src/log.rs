//! The log on disk: every change is in it before anyone hears of it. Commands append and commit; the server drives it
//! once per round and asks how far it is durable. While enough batches are on their way, all that is committed gathers for
//! the next. When the area is full it is compacted into the other one. Never waits; after a disk error it never moves again.

mod batch;
mod compaction;
mod flight;
mod recovery;
mod superblock;

use alloc::vec::Vec;

use crate::disk::{Disk, Done, Request, SECTOR_BYTES, Tag};
use crate::limits::{GROUP_BYTES, LOG_HIGH_MAX, LOG_SPARE_MAX};
use crate::store::Store;
use crate::store::op::Op;
use crate::units::{Group, Time};
use batch::Link;
use compaction::Compaction;
use flight::Flight;
pub use recovery::{OpenError, open};
use superblock::Layout;

const COMPACTION: Tag = Tag(1);

/// Whether a write command may be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Yes.
    Ready,
    /// Not now: a compaction is under way, the group is full, or too much memory is on its way to the disk.
    Later,
    /// Never again: the disk failed.
    Failed,
}

/// What the log is doing.
#[derive(Debug)]
enum Phase {
    /// There is no disk: everything counts as durable at once.
    Volatile,
    /// Batches go to the current area.
    Serving(Flight),
    /// The store is being written to the other area.
    Compacting(Compaction),
    /// The disk failed.
    Failed,
}

/// Where the next batch goes.
#[derive(Clone, Copy, Debug)]
struct Tail {
    sector: u64,
    end: u64,
    link: Link,
}

/// The log.
#[derive(Debug)]
pub struct Log {
    phase: Phase,
    layout: Option<Layout>,
    tail: Tail,
    nonce: u64,
    compactions: u64,
    /// Changes committed since the last batch was sent, behind room for a head.
    gathered: Vec<u8>,
    /// A buffer that has done its work, for the next group.
    spare: Vec<u8>,
    /// See [`Log::set_high`].
    high: usize,
    /// The group that is gathering.
    group: Group,
    durable: Group,
}

impl Log {
    /// A log without a disk.
    pub fn volatile() -> Self {
        let link = Link {
            generation: 0,
            sequence: 0,
            previous: 0,
        };
        Self::new(
            Phase::Volatile,
            None,
            Tail {
                sector: 0,
                end: 0,
                link,
            },
            0,
        )
    }

    fn new(phase: Phase, layout: Option<Layout>, tail: Tail, nonce: u64) -> Self {
        let mut gathered = Vec::new();
        batch::begin(&mut gathered);
        Log {
            phase,
            layout,
            tail,
            nonce,
            compactions: 0,
            gathered,
            spare: Vec::new(),
            high: LOG_HIGH_MAX,
            group: Group::ZERO.next(),
            durable: Group::ZERO,
        }
    }

    /// With so many bytes on their way and gathering, nothing more is taken until the disk has given some back.
    pub fn set_high(&mut self, bytes: usize) {
        self.high = bytes;
    }

    /// The group that a change made now belongs to.
    pub fn group(&self) -> Group {
        self.group
    }

    /// Everything up to this group is on disk.
    pub fn durable(&self) -> Group {
        match self.phase {
            Phase::Volatile => self.group,
            _ => self.durable,
        }
    }

    /// Whether a write command may be executed now.
    pub fn readiness(&self) -> Readiness {
        match &self.phase {
            Phase::Volatile => Readiness::Ready,
            Phase::Serving(flight) if self.may_take(flight) => Readiness::Ready,
            Phase::Serving(_) | Phase::Compacting(_) => Readiness::Later,
            Phase::Failed => Readiness::Failed,
        }
    }

    /// Whether one more command, however large, is within the log's part of the memory; budget.rs does the sum.
    fn may_take(&self, flight: &Flight) -> bool {
        let away = flight.held();
        self.gathered.len() < GROUP_BYTES && (away == 0 || away + self.gathered.len() < self.high)
    }

    /// Memory that the log holds.
    pub fn held(&self) -> usize {
        let away = match &self.phase {
            Phase::Serving(flight) => flight.held(),
            Phase::Compacting(compaction) => compaction.held(),
            Phase::Volatile | Phase::Failed => 0,
        };
        away + self.gathered.capacity() + self.spare.capacity()
    }

    /// Makes room for the changes of one command, so many bytes of them; false when the heap has none. The log must be
    /// ready. What it holds in vain goes first, so that old and new together stay within the log's part.
    pub fn reserve(&mut self, bytes: usize, free: fn() -> usize) -> bool {
        if matches!(self.phase, Phase::Volatile) {
            return true;
        }
        let Some(capacity) = batch::grown(&self.gathered, bytes) else {
            return true;
        };
        self.spare = Vec::new();
        self.gathered.shrink_to_fit();
        if free() < capacity {
            return false;
        }
        self.gathered.reserve_exact(capacity - self.gathered.len());
        true
    }

    /// Whether the disk has room for a store that takes so many bytes.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.layout.is_none_or(|layout| bytes <= layout.data_max())
    }

    /// Adds a change to the group that is gathering. All changes of a command must be added before the next
    /// [`Log::drive`].
    pub fn append(&mut self, op: &Op<'_>) {
        if !matches!(self.phase, Phase::Volatile) {
            batch::append(&mut self.gathered, op);
        }
    }

    /// Whether everything that was appended is durable, or never will be.
    pub fn is_settled(&self) -> bool {
        match &self.phase {
            Phase::Volatile | Phase::Failed => true,
            Phase::Serving(flight) => self.is_gathering_nothing() && flight.is_empty(),
            Phase::Compacting(_) => false,
        }
    }

    /// Bytes of the current area that are in use, and its size.
    pub fn usage(&self) -> (u64, u64) {
        let Some(layout) = self.layout else { return (0, 0) };
        let (first, end) = layout.area(self.tail.link.generation);
        (
            (self.tail.sector - first) * SECTOR_BYTES as u64,
            (end - first) * SECTOR_BYTES as u64,
        )
    }

    /// How many compactions there were since power-on.
    pub fn compactions(&self) -> u64 {
        self.compactions
    }

    /// Takes in what the disk has done, and starts what can be started. The caller kicks.
    pub fn drive(&mut self, disk: &mut impl Disk, store: &Store, now: Time) {
        while let Some(done) = disk.poll() {
            self.handle_done(done, disk.needs_flush());
        }
        if let Phase::Serving(_) = self.phase
            && self.serve(disk, now).is_err()
        {
            self.phase = Phase::Failed;
        }
        self.compact(disk, store, now);
    }

    fn is_gathering_nothing(&self) -> bool {
        self.gathered.len() == batch::HEAD_BYTES
    }

    fn handle_done(&mut self, done: Done, needs_flush: bool) {
        if done.result.is_err() {
            self.phase = Phase::Failed;
        }
        match &mut self.phase {
            Phase::Volatile | Phase::Failed => (),
            Phase::Compacting(compaction) => compaction.handle_done(done.bytes),
            Phase::Serving(flight) => {
                if flight.handle_done(done.tag) && done.bytes.capacity() <= LOG_SPARE_MAX {
                    self.spare = done.bytes;
                }
                self.durable = flight.poll_durable(needs_flush).unwrap_or(self.durable);
            }
        }
    }

    /// Sends what has gathered, if it may go now, and asks for the flushes that are due. Gives a request back that the disk
    /// had no room for; few are ever out, so such a disk is broken.
    fn serve(&mut self, disk: &mut impl Disk, now: Time) -> Result<(), Request> {
        self.send(disk, now)?;
        let Phase::Serving(flight) = &mut self.phase else {
            return Ok(());
        };
        if disk.needs_flush() {
            while let Some(tag) = flight.poll_flush(disk.flushes_in_order()) {
                disk.submit(tag, Request::Flush)?;
            }
        }
        Ok(())
    }

    /// Sends what has gathered, or begins a compaction when the area has no room for it.
    fn send(&mut self, disk: &mut impl Disk, now: Time) -> Result<(), Request> {
        let has_gathered = !self.is_gathering_nothing();
        let Phase::Serving(flight) = &mut self.phase else {
            return Ok(());
        };
        let may_send = has_gathered && !flight.is_full();
        let sectors = (batch::sealed_len(&self.gathered) / SECTOR_BYTES) as u64;
        let fits = self.tail.sector + sectors <= self.tail.end;
        if may_send && fits {
            if self.gathered.capacity() > LOG_SPARE_MAX {
                // Room was made for more than came.
                self.gathered.shrink_to(batch::sealed_len(&self.gathered));
            }
            let tag = flight.begin(self.group, self.gathered.capacity());
            let write = self.seal(sectors, now);
            disk.submit(tag, write)?;
        } else if may_send && flight.is_empty() {
            // Not before: what is still on its way belongs to the area that is to be left.
            self.begin_compaction();
        }
        Ok(())
    }

    /// What has gathered as a write to the tail; the next group begins.
    fn seal(&mut self, sectors: u64, now: Time) -> Request {
        let check = batch::seal(&mut self.gathered, self.tail.link, now);
        let mut next = core::mem::take(&mut self.spare);
        batch::begin(&mut next);
        let bytes = core::mem::replace(&mut self.gathered, next);
        let sector = self.tail.sector;
        self.group = self.group.next();
        self.tail.sector += sectors;
        self.tail.link = self.tail.link.next(check);
        Request::Write { sector, bytes }
    }

    /// What has gathered is in the store already, so the snapshot will hold it.
    fn begin_compaction(&mut self) {
        let Some(layout) = self.layout else { return };
        let generation = self.tail.link.generation + 1;
        self.nonce = crate::prng::mix(self.nonce);
        self.phase = Phase::Compacting(Compaction::new(layout, generation, self.nonce, self.group));
        // A compaction has a buffer of its own; these make room for it.
        self.spare = Vec::new();
        if self.gathered.capacity() > LOG_SPARE_MAX {
            self.gathered = Vec::new();
        }
        batch::begin(&mut self.gathered);
        self.group = self.group.next();
    }

    fn compact(&mut self, disk: &mut impl Disk, store: &Store, now: Time) {
        let Phase::Compacting(compaction) = &mut self.phase else {
            return;
        };
        match compaction.advance(disk, store, now) {
            Ok(None) => (),
            Ok(Some(finished)) => {
                self.tail = finished.tail;
                self.durable = finished.group;
                self.compactions += 1;
                self.phase = Phase::Serving(Flight::default());
            }
            Err(compaction::Failed) => self.phase = Phase::Failed,
        }
    }
}

#[cfg(test)]
mod tests;
