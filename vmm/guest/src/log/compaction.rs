//! A compaction: the whole store is written to the area that is not in use, and then a superblock makes that the current
//! one. Until the superblock is durable the old log counts, so a crash at any write loses nothing. The log owns one while
//! it lasts, and takes no changes meanwhile, so what is written is the store of one moment.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::superblock::{Layout, Superblock};
use super::{COMPACTION, Tail, batch};
use crate::disk::{Disk, Request, SECTOR_BYTES};
use crate::limits::SNAPSHOT_BYTES;
use crate::store::Store;
use crate::store::op::Op;
use crate::units::{Group, Time};

/// The next thing to ask of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Snapshot,
    Superblock,
    FlushSuperblock,
    Finished,
}

/// The store did not fit, or the disk took no request.
#[derive(Debug)]
pub(super) struct Failed;

/// What a finished compaction leaves.
#[derive(Debug)]
pub(super) struct Finished {
    /// Where the log goes on.
    pub(super) tail: Tail,
    /// What is durable by it.
    pub(super) group: Group,
}

/// A compaction under way.
#[derive(Debug)]
pub(super) struct Compaction {
    superblock: Superblock,
    tail: Tail,
    group: Group,
    stage: Stage,
    /// The last key written.
    cursor: Option<Box<[u8]>>,
    busy: bool,
    buffer: Vec<u8>,
    /// What the buffer holds, wherever it is.
    memory: usize,
}

impl Compaction {
    /// Begins one that makes `group` durable.
    pub(super) fn new(layout: Layout, generation: u64, nonce: u64, group: Group) -> Self {
        let superblock = Superblock {
            generation,
            nonce,
            batches: 0,
        };
        let (sector, end) = layout.area(generation);
        let tail = Tail {
            sector,
            end,
            link: superblock.first_link(),
        };
        Compaction {
            superblock,
            tail,
            group,
            stage: Stage::Snapshot,
            cursor: None,
            busy: false,
            buffer: Vec::new(),
            memory: 0,
        }
    }

    /// Memory of the part of the store that is being written.
    pub(super) fn held(&self) -> usize {
        self.memory
    }

    /// The request that was out is over.
    pub(super) fn handle_done(&mut self, buffer: Vec<u8>) {
        self.buffer = buffer;
        self.busy = false;
    }

    /// Starts the next request, if none is out; says when it is all over.
    pub(super) fn advance(
        &mut self,
        disk: &mut impl Disk,
        store: &Store,
        now: Time,
    ) -> Result<Option<Finished>, Failed> {
        if self.busy {
            return Ok(None);
        }
        let request = match self.stage {
            Stage::Snapshot => self.next_batch(store, now)?,
            Stage::Superblock => {
                self.superblock.batches = self.tail.link.sequence;
                self.stage = Stage::FlushSuperblock;
                Request::Write {
                    sector: self.superblock.sector(),
                    bytes: self.superblock.encode(),
                }
            }
            Stage::FlushSuperblock => {
                self.stage = Stage::Finished;
                Request::Flush
            }
            Stage::Finished => {
                return Ok(Some(Finished {
                    tail: self.tail,
                    group: self.group,
                }));
            }
        };
        disk.submit(COMPACTION, request).map_err(|_| Failed)?;
        self.busy = true;
        Ok(None)
    }

    /// The next part of the store; a flush when all of it is written.
    fn next_batch(&mut self, store: &Store, now: Time) -> Result<Request, Failed> {
        let mut bytes = core::mem::take(&mut self.buffer);
        batch::begin(&mut bytes);
        let mut last = None;
        for (key, entry) in store.after(self.cursor.as_deref()) {
            let op = Op::Put {
                key,
                value: entry.value(),
                expires: entry.expires(),
            };
            batch::append(&mut bytes, &op);
            last = Some(key);
            if bytes.len() >= SNAPSHOT_BYTES {
                break;
            }
        }
        let Some(last) = last else {
            self.stage = Stage::Superblock;
            self.memory = 0;
            return Ok(Request::Flush);
        };
        self.cursor = Some(last.into());
        self.memory = bytes.capacity();
        let check = batch::seal(&mut bytes, self.tail.link, now);
        let sector = self.tail.sector;
        self.tail.sector += (bytes.len() / SECTOR_BYTES) as u64;
        self.tail.link = self.tail.link.next(check);
        if self.tail.sector > self.tail.end {
            return Err(Failed);
        }
        Ok(Request::Write { sector, bytes })
    }
}
