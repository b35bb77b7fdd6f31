//! A delta: what a backup needs to stand where the primary's guest was stopped in the middle of a run. The pages that were
//! written since the last point that both hosts share, and the machine apart from its memory.
//!
//! The recorder makes one when a guest that makes no exits keeps inputs waiting; it goes over as records of the log. The
//! replayer of a backup puts it in place with a [`DeltaTaker`]. To know the pages, writes are tracked as long as there is a backup;
//! what was written before a window that is served is forgotten now and then, for the backup recomputes it up to there.

use crate::kvm::KvmError;
use crate::machine::{CaptureError, DeltaError, Machine};
use crate::state::dirty::{Page, WriteTracker};
use crate::state::{MachineState, STATE_BYTES_MAX};
use crate::transfer::pages::{self, BadPages, Bases, PageEncoder, Pages};
use bytes::Bytes;
use lockstep_protocol::limits::MAX_PAYLOAD;
use std::time::{Duration, Instant};

/// How often what was written is looked at in a window and forgotten. Each time, the guest's next write to each page costs an
/// exit inside KVM; the longer the time, the larger is the first delta of a stall, and the later is a divergence found.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A look comes this many times what the last one took later at the earliest: on a slow host, too, the guest stands still for a
/// fiftieth of its time at most.
const LOOK_SHARE: u32 = 50;
/// So many bytes of pages make a record.
const PIECE_BYTES: usize = 256 << 10;
/// What is sent for a page is never longer than the page and its head.
const PAGE_BYTES_MAX: usize = Page::BYTES + 8;

/// How many bytes of pages a delta of a machine with so much memory may have.
#[must_use]
pub fn bytes_max(memory_bytes: u64) -> usize {
    let pages = memory_bytes / Page::BYTES as u64;
    usize::try_from(pages).expect("this crate is for 64-bit hosts") * PAGE_BYTES_MAX
}

/// Why no delta could be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// KVM does not tell what was written.
    #[error(transparent)]
    Written(#[from] KvmError),
    /// The machine cannot be captured.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// No record holds it.
    #[error("The machine apart from its memory comes to {0} bytes, more than a record holds")]
    Large(usize),
}

/// A delta on its way out.
#[derive(Debug)]
pub struct Delta {
    /// Its pages, in pieces.
    pub pages: Vec<Bytes>,
    /// Its end.
    pub end: Vec<u8>,
}

/// What the status says of deltas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeltaCounts {
    /// How many there were.
    pub deltas: u64,
    /// How many of them made a backup equal that had diverged.
    pub heals: u64,
    /// Their bytes in the log.
    pub bytes: u64,
}

impl DeltaCounts {
    /// One more delta, of these pages and this end.
    pub(super) fn add(&mut self, pages: &[Bytes], end: &[u8]) {
        self.deltas += 1;
        self.bytes += (pages.iter().map(Bytes::len).sum::<usize>() + end.len()) as u64;
    }
}

/// Tracks writes and makes deltas, for a host that has a backup.
#[derive(Debug, Default)]
pub struct DeltaMaker {
    writes: Option<WriteTracker>,
    encoder: PageEncoder,
    /// What the backup holds of pages that went over in deltas.
    bases: Bases,
    /// Before this, what was written is not looked at.
    look_at: Option<Instant>,
}

impl DeltaMaker {
    /// Tracks what is written from this window on, if it does not yet. If the backup's machine is `equal` in this window, and
    /// it is time to look, gives and forgets what was written before.
    ///
    /// # Errors
    /// When KVM does not track.
    pub fn follow(&mut self, machine: &Machine, equal: bool) -> Result<Option<Vec<Page>>, KvmError> {
        match &self.writes {
            // What is tracked belongs to one life of the guest, and the next one begins equal on both hosts.
            _ if machine.restarts() => self.stop(),
            None => {
                self.writes = Some(machine.track_writes()?);
                self.looked(Duration::ZERO);
            }
            // Several vCPUs are never recomputed: nothing is forgotten but by a delta.
            Some(_) if machine.is_several() => {}
            Some(writes) if equal && self.look_at.is_none_or(|at| Instant::now() >= at) => {
                return Ok(Some(writes.take()?));
            }
            Some(_) => {}
        }
        Ok(None)
    }

    /// What was written was looked at, for which the guest stood still for so long.
    pub fn looked(&mut self, took: Duration) {
        self.look_at = Some(Instant::now() + LOOK_EVERY.max(took * LOOK_SHARE));
    }

    /// How long it is until what was written is looked at, if it is tracked.
    #[must_use]
    pub fn look_in(&self) -> Option<Duration> {
        self.writes.as_ref()?;
        Some(self.look_at?.saturating_duration_since(Instant::now()))
    }

    /// There is no backup any more.
    pub fn stop(&mut self) {
        (self.writes, self.bases) = (None, Bases::default());
    }

    /// Makes a delta of a machine that stands still. [`Self::follow`] was called in a window before.
    ///
    /// # Errors
    /// When KVM does not tell what it needs.
    pub fn make(&mut self, machine: &mut Machine) -> Result<Delta, MakeError> {
        let end = Self::capture(machine)?;
        let written = self.take()?;
        Ok(Delta {
            pages: self.encode(machine, &written),
            end,
        })
    }

    /// Makes a delta of which the end is here, for a machine of which only the `differing` pages are not what they are here.
    /// Forgets what was written before, and gives it. What went over before is of no use: the backup may have missed it.
    ///
    /// # Errors
    /// When KVM does not tell what it needs.
    pub fn make_of(
        &mut self,
        machine: &Machine,
        end: Vec<u8>,
        differing: &[Page],
    ) -> Result<(Delta, Vec<Page>), MakeError> {
        let written = self.take()?;
        self.bases = Bases::default();
        let pages = self.encode(machine, differing);
        Ok((Delta { pages, end }, written))
    }

    /// The end of a delta of a machine that stands still.
    ///
    /// # Errors
    /// When KVM does not tell what it needs.
    pub fn capture(machine: &mut Machine) -> Result<Vec<u8>, MakeError> {
        let state = machine.capture()?.encode();
        let end = lz4_flex::block::compress_prepend_size(&state);
        if end.len() > MAX_PAYLOAD {
            return Err(MakeError::Large(end.len()));
        }
        Ok(end)
    }

    fn take(&self) -> Result<Vec<Page>, KvmError> {
        self.writes.as_ref().map_or(Ok(Vec::new()), WriteTracker::take)
    }

    fn encode(&mut self, machine: &Machine, sent: &[Page]) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        let mut piece = Pages::default();
        for page in sent {
            self.encoder
                .encode_change(&mut self.bases, machine.memory(), *page, &mut piece);
            if piece.len() >= PIECE_BYTES {
                pieces.push(std::mem::take(&mut piece).into_bytes());
            }
        }
        if !piece.is_empty() {
            pieces.push(piece.into_bytes());
        }
        // The backup's guest may write them before the next delta.
        self.encoder.forget(sent);
        pieces
    }
}

/// Puts deltas in place, one after the other as the log has them, and holds what they said of pages.
#[derive(Clone, Debug, Default)]
pub struct DeltaTaker {
    bases: Bases,
}

impl DeltaTaker {
    /// Puts a whole delta in place; one that `heals` does so wherever the machine stands.
    ///
    /// # Errors
    /// When it is none of this machine. It is of no more use then, and neither is the machine.
    pub fn apply(
        &mut self,
        machine: &mut Machine,
        pages: &[Bytes],
        end: &[u8],
        heals: bool,
    ) -> Result<(), DeltaError> {
        let state = unpack(end)?;
        if heals {
            self.bases = Bases::default();
        }
        machine.become_like(&state, heals, |memory| -> Result<(), BadPages> {
            pages
                .iter()
                .try_for_each(|piece| pages::apply_changes(&mut self.bases, piece, memory).map(drop))
        })
    }
}

/// The state in the end of a delta. The length that it claims is checked before room is made for it.
fn unpack(end: &[u8]) -> Result<MachineState, DeltaError> {
    let (length, packed) = lz4_flex::block::uncompressed_size(end).map_err(|_| DeltaError::Packed)?;
    if length > STATE_BYTES_MAX {
        return Err(DeltaError::Packed);
    }
    let state = lz4_flex::block::decompress(packed, length).map_err(|_| DeltaError::Packed)?;
    Ok(MachineState::decode(&state)?)
}
