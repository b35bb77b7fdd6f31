//! A mirrored disk on its way to another host: which blocks are sent, in what order, and as what.
//!
//! The copying thread of `source.rs` asks a `DiskSource`; the spare's [`intake`] puts the pieces in place. Only
//! blocks that hold something are sent, and to a host that comes back only those in which the two images may differ, by
//! the maps of both (`lockstep-image`). What the guest changes meanwhile is noted by the disk process after it was changed,
//! and sent in the next round: so nothing that was read while it changed is the last word.

pub mod intake;

use bytes::{BufMut, Bytes, BytesMut};
use lockstep_image::{Account, Block, ImageFile, map};
use lockstep_staging::changes::ChangesReader;
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// So many bytes of blocks make a piece.
const PIECE_BYTES: usize = 1 << 20;
/// An image is read in parts of so many bytes; a part of zeros is not sent as bytes.
const PART: usize = 64 << 10;
/// So many runs of blocks are announced in one piece.
const RUNS: usize = 64 << 10;

/// The first word of a copy of an image. 0 is invalid.
mod extent {
    /// All of it: what the spare's image holds is of no use.
    pub(super) const WHOLE: u8 = 1;
    /// What may differ.
    pub(super) const CHANGES: u8 = 2;
}

/// How a part of an image is sent. 0 is invalid.
mod kind {
    /// Zeros; no bytes follow.
    pub(super) const ZEROS: u8 = 1;
    /// The bytes.
    pub(super) const RAW: u8 = 2;
}

/// Before what is sent for a part.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Entry {
    at: U64,
    length: U32,
    kind: u8,
    reserved: [u8; 3],
}

/// A run of blocks that are about to be sent.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Run {
    first: U32,
    count: U32,
}

/// This host's own image, and the notes of its disk process.
#[derive(Debug)]
pub struct OwnImage {
    image: ImageFile,
    map: PathBuf,
    changes: ChangesReader,
}

impl OwnImage {
    /// The image at `path`, whose process notes its changes in `changes`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(path: &Path, changes: ChangesReader) -> io::Result<Self> {
        Ok(Self {
            image: ImageFile::open(path)?,
            map: map::path_of(path),
            changes,
        })
    }
}

/// What is left to send of an image.
#[derive(Debug)]
pub(super) struct DiskSource {
    image: ImageFile,
    is_whole: bool,
    left: BTreeSet<Block>,
    /// What is left of the block that is being sent.
    rest: Range<u64>,
    room: Vec<u8>,
}

impl DiskSource {
    /// Finds out what has to be sent to a host whose map says `theirs`; and who notes what changes meanwhile.
    pub(super) fn begin(own: OwnImage, theirs: &Account) -> io::Result<(Self, ChangesReader)> {
        let OwnImage { image, map, changes } = own;
        // What is changed from here on is noted anew; what was changed before is in the map and in the file.
        changes.take();
        let differ = map::account_of(image.file(), &map)?.may_differ(theirs);
        let is_whole = differ.is_none();
        let left = match differ {
            Some(blocks) => blocks,
            None => image.allocated()?,
        };
        Ok((Self::of(image, is_whole, left), changes))
    }

    fn of(image: ImageFile, is_whole: bool, left: Vec<Block>) -> Self {
        Self {
            image,
            is_whole,
            left: left.into_iter().collect(),
            rest: 0..0,
            room: vec![0; PART],
        }
    }

    /// The first piece.
    pub(super) fn extent(&self) -> Bytes {
        match self.is_whole {
            true => Bytes::from_static(&[extent::WHOLE]),
            false => Bytes::from_static(&[extent::CHANGES]),
        }
    }

    /// Whether all of the image goes over.
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Adds what has changed meanwhile.
    pub(super) fn add(&mut self, changed: Vec<u32>) {
        self.left.extend(changed.into_iter().map(Block::new));
    }

    /// How many bytes are left of this round, at most.
    pub(super) fn left(&self) -> u64 {
        self.left.len() as u64 * self.image.grid().block_bytes() + (self.rest.end - self.rest.start)
    }

    /// Has this host's storage do its work before the guest stands still for it.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.image.sync()
    }

    /// Says which blocks come in this round, in pieces: the spare notes them before it changes them.
    pub(super) fn announced(&self) -> Vec<Bytes> {
        let mut runs: Vec<Run> = Vec::new();
        for block in &self.left {
            match runs.last_mut() {
                Some(run) if run.first.get() + run.count.get() == block.get() => {
                    run.count = (run.count.get() + 1).into();
                }
                _ => runs.push(Run {
                    first: block.get().into(),
                    count: 1.into(),
                }),
            }
        }
        runs.chunks(RUNS)
            .map(|runs| Bytes::copy_from_slice(runs.as_bytes()))
            .collect()
    }

    /// The next piece of this round, if there is one.
    pub(super) fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        let mut out = BytesMut::new();
        while out.len() < PIECE_BYTES {
            if self.rest.is_empty() {
                let Some(block) = self.left.pop_first() else { break };
                self.rest = self.image.grid().range(block);
                continue;
            }
            self.add_part(&mut out)?;
        }
        Ok((!out.is_empty()).then(|| out.freeze()))
    }

    fn add_part(&mut self, out: &mut BytesMut) -> io::Result<()> {
        let at = self.rest.start;
        let length = (self.rest.end - at).min(PART as u64);
        let room = &mut self.room[..length as usize];
        self.image.read(at, room)?;
        let is_zero = room.iter().all(|byte| *byte == 0);
        let entry = Entry {
            at: at.into(),
            length: u32::try_from(length).expect("a part is 64 KiB").into(),
            kind: if is_zero { kind::ZEROS } else { kind::RAW },
            reserved: [0; 3],
        };
        out.put_slice(entry.as_bytes());
        if !is_zero {
            out.put_slice(room);
        }
        self.rest.start += length;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
