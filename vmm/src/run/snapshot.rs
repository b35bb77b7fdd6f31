//! Snapshots in the run loop: a live host writes one in a window that was served, and a run starts from one.

use super::live::Live;
use super::{Ended, Host};
use crate::errand::{ErrandError, Taken};
use crate::machine::CaptureError;
use std::time::Instant;

impl Live {
    /// Writes a snapshot if one is wanted; the guest stands still meanwhile.
    pub(super) fn see_to_errand(&self, host: &mut Host) {
        let Some(mut errand) = host.errands.take() else {
            return;
        };
        let begun = Instant::now();
        let result = match host.machine.capture() {
            Err(CaptureError::NotStarted | CaptureError::InPieces) => return host.errands.put_back(errand),
            Err(error) => Err(ErrandError::Capture(error.to_string())),
            Ok(state) => errand
                .draft
                .write(&state, host.machine.memory())
                .map_err(ErrandError::from)
                .map(|bytes| Taken {
                    position: state.position(),
                    bytes,
                    stood_still: begun.elapsed(),
                }),
        };
        tracing::info!(?result, "The guest stood still for a snapshot");
        errand.answer(result);
    }

    /// Goes on with a machine that comes from a snapshot. What its devices had not done is ordered from ours.
    pub(super) fn resume(mut self, host: &mut Host) -> anyhow::Result<Ended> {
        host.stop.heed();
        self.recorder.adopt(&host.machine);
        self.recorder.reissue(&host.machine);
        self.run(host)
    }
}
