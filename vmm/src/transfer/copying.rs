//! One copy to one spare, on the copying thread: memory and a mirrored disk in rounds until little is left, then, while the
//! machine stands still, the rest of it. `source.rs` makes one for each spare and asks the run loop for what it needs.

use super::disk::DiskSource;
use super::pages::{self, PageEncoder, Pages};
use super::piece;
use super::source::{Captured, CopyError, Held, Line, Tracked};
use crate::memory::GuestRam;
use crate::state::dirty::{Page, WriteTracker};
use bytes::{BufMut, Bytes, BytesMut};
use lockstep_image::{Account, PairingId};
use lockstep_quic::state::StateSender;
use lockstep_staging::changes::ChangesReader;
use std::sync::Arc;
use std::time::Duration;

/// How long a spare may take to put a round in place, after it was sent; the guest goes on meanwhile.
const ROUND_WAIT: Duration = Duration::from_secs(30);
/// How long a spare may take to hold the last pieces; the guest stands still meanwhile.
const HELD_WAIT: Duration = Duration::from_millis(500);
/// The guest is stopped when a round has no more pages than this: they go over in some milliseconds.
const STOP_PAGES: usize = 512;
/// And no more bytes of a mirrored disk than this.
const STOP_DISK_BYTES: u64 = 2 << 20;
/// Rounds after which it is stopped anyway: it writes faster than the connection carries.
const ROUNDS_MAX: u32 = 12;
/// So many bytes of pages make a piece.
const PIECE_BYTES: usize = 1 << 20;

/// One copy under way.
pub(super) struct Copying<'a> {
    line: &'a Line,
    spare: StateSender,
    memory: Arc<GuestRam>,
    writes: WriteTracker,
    encoder: PageEncoder,
    /// Pages of the next round.
    pub(super) left: Vec<Page>,
    disk: Option<(DiskSource, ChangesReader)>,
}

impl<'a> Copying<'a> {
    /// Hears what the spare has.
    pub(super) fn begin(line: &'a Line, mut spare: StateSender, tracked: Tracked) -> Result<Self, CopyError> {
        let Tracked { memory, writes, disk } = tracked;
        let mut begun = None;
        if let Some(own) = disk {
            let account = spare.hear_account(Account::BYTES_MAX)?;
            let theirs = Account::from_bytes(&account).ok_or(CopyError::Account)?;
            let (source, changes) = DiskSource::begin(own, &theirs)?;
            line.progress.disk_begins(source.is_whole());
            spare.send(piece::DISK, source.extent())?;
            begun = Some((source, changes));
        }
        Ok(Self {
            line,
            spare,
            left: pages::all(&memory).collect(),
            memory,
            writes,
            encoder: PageEncoder::default(),
            disk: begun,
        })
    }

    /// Rounds, until what is left of one is small or does not become smaller.
    pub(super) fn follow(&mut self) -> Result<(), CopyError> {
        for _ in 0..ROUNDS_MAX {
            self.round()?;
            // A spare that is behind would let the guest stand still for what it has yet to put in place.
            self.spare.send(piece::ROUND, Bytes::new())?;
            self.spare.wait_until_held(ROUND_WAIT)?;
            self.refresh()?;
            let disk_left = self.disk.as_ref().map_or(0, |(disk, _)| disk.left());
            if self.left.len() <= STOP_PAGES && disk_left <= STOP_DISK_BYTES {
                break;
            }
        }
        match &self.disk {
            Some((disk, _)) => Ok(disk.sync()?),
            None => Ok(()),
        }
    }

    /// What was written since the round that was sent last.
    fn refresh(&mut self) -> Result<(), CopyError> {
        self.left.extend(self.writes.take()?);
        self.left.sort_unstable();
        self.left.dedup();
        if let Some((disk, changes)) = &mut self.disk {
            disk.add(changes.take());
        }
        Ok(())
    }

    fn round(&mut self) -> Result<(), CopyError> {
        let disk_left = self.disk.as_ref().map_or(0, |(disk, _)| disk.left());
        self.line.progress.round(self.left.len() as u64, disk_left);
        self.send_disk()?;
        self.send_pages()
    }

    fn send_disk(&mut self) -> Result<(), CopyError> {
        let Some((disk, _)) = &mut self.disk else {
            return Ok(());
        };
        for runs in disk.announced() {
            self.spare.send(piece::ANNOUNCED, runs)?;
        }
        let mut left = disk.left();
        while let Some(bytes) = disk.next_piece()? {
            let length = bytes.len() as u64;
            self.spare.send(piece::BLOCKS, bytes)?;
            self.line.progress.disk_moved(left - disk.left(), length);
            left = disk.left();
            self.line.check_wanted()?;
        }
        Ok(())
    }

    fn send_pages(&mut self) -> Result<(), CopyError> {
        let left = std::mem::take(&mut self.left);
        let mut rest = left.iter();
        let mut counted = 0;
        loop {
            let mut out = Pages::with_room(PIECE_BYTES);
            while out.len() < PIECE_BYTES {
                let Some(page) = rest.next() else { break };
                self.encoder.encode(&self.memory, *page, &mut out);
            }
            let done = (left.len() - rest.len()) as u64;
            let bytes = out.into_bytes();
            if bytes.is_empty() {
                return Ok(());
            }
            let length = bytes.len() as u64;
            self.spare.send(piece::PAGES, bytes)?;
            self.line.progress.moved(done - counted, length);
            counted = done;
            self.line.check_wanted()?;
        }
    }

    /// The machine stands still: sends the rest of it, and waits until the spare holds all of it.
    pub(super) fn finish(&mut self, captured: &Captured) -> Result<Held, CopyError> {
        self.refresh()?;
        tracing::debug!(pages = self.left.len(), "The last pages are sent");
        self.round()?;
        let pairing = self.disk.as_ref().map(|_| rand::random::<PairingId>());
        if let Some(id) = pairing {
            self.spare.send(piece::PAIRING, Bytes::copy_from_slice(&id))?;
        }
        let mut bytes = BytesMut::with_capacity(8 + captured.state.len());
        bytes.put_u64_le(captured.start.get());
        bytes.put_slice(&captured.state);
        self.spare.send(piece::MACHINE, bytes.freeze())?;
        let ack = self.spare.wait_until_held(HELD_WAIT)?;
        match (ack.upto, ack.position) == (captured.start, captured.position) {
            true => Ok(Held {
                spare: self.spare.peer().node.clone(),
                pairing,
            }),
            false => Err(CopyError::Elsewhere(ack.position)),
        }
    }
}
