//! The disk: the log's requests as virtio-blk chains of header, data and status. Submits and polls; only
//! [`Disk::wait`] ever gives the processor away, through the function it was opened with.

use alloc::vec::Vec;

use super::mmio::{Kind, OpenError, Registers, Transport};
use super::queue::{Finished, Piece, Queue};
use crate::disk::{Disk, DiskError, Done, Request, SECTOR_BYTES, Tag};

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

/// The disk.
#[derive(Debug)]
pub struct Blk {
    transport: Transport,
    queue: Queue,
    sectors: u64,
    /// Whose request each head is, and whether it carries data.
    tags: Vec<Option<Tag>>,
    /// Flushes that the device needs not be asked for.
    vain: Vec<Tag>,
    idle: fn(),
}

impl Blk {
    /// Starts the disk behind the registers. `idle` gives the processor away until something happens.
    pub fn open(registers: Registers, idle: fn()) -> Result<Self, OpenError> {
        let mut transport = Transport::open(registers, Kind::Blk, |_| FEATURE_FLUSH | FEATURE_RO)?;
        let queue = transport.queue(QUEUE, QUEUE_SIZE)?;
        if queue.size() < 4 {
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
            vain: Vec::new(),
            idle,
        })
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.transport.has(FEATURE_RO)
    }

    fn done(&mut self, finished: Finished, tag: Tag) -> Done {
        let [_, second, third] = finished.buffers;
        let (bytes, status) = match third {
            Some(status) => (second.unwrap_or_default(), Some(status)),
            None => (Vec::new(), second),
        };
        let ok = status.is_some_and(|status| status.first() == Some(&STATUS_OK));
        Done {
            tag,
            result: if ok { Ok(()) } else { Err(DiskError) },
            bytes,
        }
    }
}

impl Disk for Blk {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn needs_flush(&self) -> bool {
        self.transport.has(FEATURE_FLUSH)
    }

    fn submit(&mut self, tag: Tag, request: Request) -> Result<(), Request> {
        if self.queue.room() < 3 {
            return Err(request);
        }
        let status = Piece::for_device(alloc::vec![STATUS_UNSET]);
        let added = match request {
            Request::Read { sector, bytes } => self
                .queue
                .add([header(TYPE_IN, sector), Piece::for_device(bytes), status])
                .ok(),
            Request::Write { sector, bytes } => self
                .queue
                .add([header(TYPE_OUT, sector), Piece::from_driver(bytes), status])
                .ok(),
            Request::Flush if !self.needs_flush() => {
                self.vain.push(tag);
                return Ok(());
            }
            Request::Flush => self.queue.add([header(TYPE_FLUSH, 0), status]).ok(),
        };
        let head = added.expect("there is room for three pieces");
        self.tags[usize::from(head)] = Some(tag);
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
            if let Some(tag) = self.tags[usize::from(finished.head)].take() {
                return Some(self.done(finished, tag));
            }
        }
    }

    fn wait(&mut self) {
        if !self.has_done() {
            (self.idle)();
        }
    }
}

fn header(kind: u32, sector: u64) -> Piece {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&sector.to_le_bytes());
    Piece::from_driver(bytes)
}

const _: () = assert!(SECTOR_BYTES == 512, "virtio-blk counts sectors of 512 bytes");
