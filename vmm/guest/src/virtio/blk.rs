//! The disk: the log's requests as virtio-blk chains of header, data and status. Submits and polls; only
//! [`Disk::wait`] ever gives the processor away, through the function it was opened with.

use alloc::rc::Rc;
use alloc::vec::Vec;

use super::mmio::{Kind, OpenError, Registers, Transport};
use super::queue::{Finished, Piece, Queue};
use crate::abi::DISK_TRANSFER_MAX;
use crate::disk::{Disk, DiskError, Done, Request, SECTOR_BYTES, Tag};
use crate::limits::{BATCH_MAX, BATCHES_OUT};

const FEATURE_RO: u64 = 1 << 5;
const FEATURE_FLUSH: u64 = 1 << 9;

const QUEUE: u16 = 0;
/// The log has few requests out at a time.
const QUEUE_SIZE: u16 = 64;
const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const STATUS_OK: u8 = 0;
/// What the status byte holds before the device writes it.
const STATUS_UNSET: u8 = 0xff;
const HEADER_BYTES: usize = 16;
/// Data of one request at most: abi.rs allows no more.
const TRANSFER_MAX: usize = DISK_TRANSFER_MAX as usize;
/// Header, data and status.
const TRANSFER_DESCRIPTORS: usize = 3;
/// Header and status.
const FLUSH_DESCRIPTORS: usize = 2;
/// The longest writes in their parts, and a flush beside each.
const DESCRIPTORS_MIN: usize = BATCHES_OUT * (TRANSFER_DESCRIPTORS * parts(BATCH_MAX) + FLUSH_DESCRIPTORS);

/// A write that is too long for one request.
#[derive(Debug)]
struct Split {
    tag: Tag,
    /// How many of its requests are out.
    left: usize,
    result: Result<(), DiskError>,
    /// What its requests read from: parts of it, and no copies, for there may be no memory for those.
    bytes: Rc<Vec<u8>>,
}

/// The disk.
#[derive(Debug)]
pub struct Blk {
    transport: Transport,
    queue: Queue,
    sectors: u64,
    /// Whose request each head is.
    tags: Vec<Option<Tag>>,
    /// Writes whose parts are out.
    splits: Vec<Split>,
    /// Flushes that the device needs not be asked for.
    vain: Vec<Tag>,
    idle: fn(),
}

impl Blk {
    /// Starts the disk behind the registers. `idle` gives the processor away until something happens.
    pub fn open(registers: Registers, idle: fn()) -> Result<Self, OpenError> {
        let mut transport = Transport::open(registers, Kind::Blk, |_| FEATURE_FLUSH | FEATURE_RO)?;
        let queue = transport.queue(QUEUE, QUEUE_SIZE)?;
        if usize::from(queue.size()) < DESCRIPTORS_MIN {
            return Err(OpenError::Queue(QUEUE));
        }
        let sectors = transport.config_long(0);
        transport.ready();
        let tags = alloc::vec![None; usize::from(queue.size())];
        Ok(Blk {
            transport,
            queue,
            sectors,
            tags,
            splits: Vec::new(),
            vain: Vec::new(),
            idle,
        })
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.transport.has(FEATURE_RO)
    }

    /// How many descriptors a request takes.
    fn descriptors(&self, request: &Request) -> usize {
        match request {
            Request::Read { .. } => TRANSFER_DESCRIPTORS,
            Request::Write { bytes, .. } => TRANSFER_DESCRIPTORS * parts(bytes.len()),
            Request::Flush if self.needs_flush() => FLUSH_DESCRIPTORS,
            Request::Flush => 0,
        }
    }

    fn write(&mut self, tag: Tag, sector: u64, bytes: Vec<u8>) {
        let left = parts(bytes.len());
        if left == 1 {
            let data = Piece::from_driver(bytes);
            return self.send(tag, [header(TYPE_OUT, sector), data, status()]);
        }
        let bytes = Rc::new(bytes);
        for start in (0..bytes.len()).step_by(TRANSFER_MAX) {
            let sector = sector + (start / SECTOR_BYTES) as u64;
            let end = bytes.len().min(start + TRANSFER_MAX);
            let data = Piece::shared(&bytes, start..end);
            self.send(tag, [header(TYPE_OUT, sector), data, status()]);
        }
        self.splits.push(Split {
            tag,
            left,
            result: Ok(()),
            bytes,
        });
    }

    /// The caller has looked for room.
    fn send<const N: usize>(&mut self, tag: Tag, pieces: [Piece; N]) {
        let head = self.queue.add(pieces).expect("the caller has looked for room");
        self.tags[usize::from(head)] = Some(tag);
    }

    /// What a chain's end means for its request; none if other chains of it are still out.
    fn finish(&mut self, finished: Finished, tag: Tag) -> Option<Done> {
        let [_, second, third] = finished.buffers;
        let (bytes, status) = match third {
            Some(status) => (second.unwrap_or_default(), Some(status)),
            None => (Vec::new(), second),
        };
        let ok = status.is_some_and(|status| status.first() == Some(&STATUS_OK));
        let result = if ok { Ok(()) } else { Err(DiskError) };
        let Some(at) = self.splits.iter().position(|split| split.tag == tag) else {
            return Some(Done { tag, result, bytes });
        };
        let split = &mut self.splits[at];
        split.result = split.result.and(result);
        split.left -= 1;
        if split.left > 0 {
            return None;
        }
        let Split { result, bytes, .. } = self.splits.swap_remove(at);
        // All of its requests are over, so nobody else has a share.
        let bytes = Rc::into_inner(bytes).unwrap_or_default();
        Some(Done { tag, result, bytes })
    }
}

impl Disk for Blk {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn needs_flush(&self) -> bool {
        self.transport.has(FEATURE_FLUSH)
    }

    /// abi.rs promises it.
    fn flushes_in_order(&self) -> bool {
        true
    }

    fn submit(&mut self, tag: Tag, request: Request) -> Result<(), Request> {
        if self.queue.room() < self.descriptors(&request) {
            return Err(request);
        }
        match request {
            Request::Read { sector, bytes } => {
                self.send(tag, [header(TYPE_IN, sector), Piece::for_device(bytes), status()]);
            }
            Request::Write { sector, bytes } => self.write(tag, sector, bytes),
            Request::Flush if self.needs_flush() => self.send(tag, [header(TYPE_FLUSH, 0), status()]),
            Request::Flush => self.vain.push(tag),
        }
        Ok(())
    }

    fn kick(&mut self) {
        if self.queue.take_kick() {
            self.transport.notify(QUEUE);
        }
    }

    fn has_done(&self) -> bool {
        !self.vain.is_empty() || self.queue.has_finished()
    }

    fn poll(&mut self) -> Option<Done> {
        if let Some(tag) = self.vain.pop() {
            return Some(Done {
                tag,
                result: Ok(()),
                bytes: Vec::new(),
            });
        }
        loop {
            let finished = self.queue.pop()?;
            let tag = self.tags[usize::from(finished.head)].take();
            if let Some(done) = tag.and_then(|tag| self.finish(finished, tag)) {
                return Some(done);
            }
        }
    }

    fn wait(&mut self) {
        if !self.has_done() {
            (self.idle)();
        }
    }
}

/// How many requests a write of so many bytes takes.
const fn parts(bytes: usize) -> usize {
    if bytes <= TRANSFER_MAX {
        1
    } else {
        bytes.div_ceil(TRANSFER_MAX)
    }
}

fn status() -> Piece {
    Piece::for_device(alloc::vec![STATUS_UNSET])
}

fn header(kind: u32, sector: u64) -> Piece {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&sector.to_le_bytes());
    Piece::from_driver(bytes)
}

const _: () = assert!(SECTOR_BYTES == 512, "virtio-blk counts sectors of 512 bytes");

#[cfg(test)]
mod tests;
