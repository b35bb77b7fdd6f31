//! How a primary lets its backup find out that it has diverged, and makes it equal again.
//!
//! Digests go into the log, in windows: short ones where outputs are made, longer ones now and then. When the backup found a
//! difference, its acks have stopped, and it has said what its memory comes to: then a delta of all pages that differ is made
//! as soon as the guest stands still. A backup that differs in too much is given up; a spare is then made a new one.

use super::{PeerLost, Recorder, WindowError};
use crate::ft::delta::{DeltaMaker, MakeError};
use crate::ft::digest::{self, Digester};
use crate::machine::{CaptureError, Exit, Machine};
use crate::state::dirty::Page;
use lockstep_protocol::record::Input;
use std::time::{Duration, Instant};

/// Pages that a delta may have that heals, 32 MiB: they go into the log at once, although nothing is acked.
const HEAL_PAGES_MAX: usize = 8192;

impl Recorder {
    /// The digest of this window: a short one where an output is made (I17), a longer one if what was `written` is looked at.
    pub(super) fn digest(
        &mut self,
        machine: &Machine,
        exit: &Exit,
        written: Option<&[Page]>,
    ) -> Result<Option<Vec<u8>>, WindowError> {
        let has_output = !exit.kicks.is_empty();
        let begun = Instant::now();
        let digest = match written {
            Some(written) => {
                let digest = self.digester.full(machine, written);
                self.deltas.looked(begun.elapsed());
                digest
            }
            None if has_output && self.sink.has_equal_backup() => Digester::short(machine),
            None => return Ok(None),
        };
        let digest = digest.map_err(|error| WindowError::Delta(CaptureError::from(error).into()))?;
        Ok(Some(digest))
    }

    /// How long a guest that idles may sleep before what it wrote is looked at: a backup that has diverged meanwhile must not
    /// wait for the next request to be found out.
    pub(super) fn look_in(&self) -> Option<Duration> {
        self.deltas.look_in().filter(|_| self.sink.has_equal_backup())
    }

    /// Heals a backup that has diverged, if there is one and it has said what is needed. Called when a window was served, or
    /// a stalled guest.
    ///
    /// # Errors
    /// When the backup is lost, or has to be given up.
    pub fn heal(&mut self, machine: &mut Machine) -> Result<(), WindowError> {
        if !self.sink.wants_heal() {
            return Ok(());
        }
        let end = match DeltaMaker::capture(machine) {
            Ok(end) => end,
            // In a later window.
            Err(MakeError::Capture(CaptureError::NotStarted | CaptureError::InPieces)) => return Ok(()),
            Err(error) => return Err(WindowError::Delta(error)),
        };
        let Some(patient) = self.sink.poll_heal() else {
            return Ok(());
        };
        let differing = digest::differing(machine.memory(), &patient.hashes);
        if differing.len() > HEAL_PAGES_MAX {
            tracing::error!(
                pages = differing.len(),
                "The backup differs in too much to be healed and is given up; a spare can take its place"
            );
            return Err(PeerLost.into());
        }
        let (delta, written) = self
            .deltas
            .make_of(machine, end, &differing)
            .map_err(WindowError::Delta)?;
        let pages = delta
            .pages
            .iter()
            .map(|bytes| Input::DeltaPages { bytes: &bytes[..] });
        let end = Input::DeltaEnd {
            bytes: &delta.end[..],
        };
        let inputs: Vec<_> = std::iter::once(Input::Heal).chain(pages).chain([end]).collect();
        self.sink.treat(machine.position(), &inputs)?;
        self.counts.add(&delta.pages, &delta.end);
        self.counts.heals += 1;
        // What was written just now differs because the backup has stood still; the rest is what was wrong.
        let wrong = differing.iter().find(|page| written.binary_search(page).is_err());
        tracing::warn!(
            found_at = %patient.found.position,
            found = %patient.found.what,
            pages = differing.len(),
            wrong = wrong.map(|page| format!("{:#x}", page.address().0)),
            "The backup is healed"
        );
        Ok(())
    }
}
