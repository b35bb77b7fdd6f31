//! A guest that makes no exits keeps its inputs waiting: it was stopped where it is, and they enter there.
//!
//! The run loop of a live host calls [`Recorder::stalled`] when the watchdog has stopped the guest. Where there is a backup,
//! a delta comes first, so that it stands at the same instruction when the inputs enter; its records and theirs go into the
//! same log. The position does not move.

use super::{PeerLost, Recorder, WindowError};
use crate::machine::Machine;
use lockstep_protocol::ids::{GuestTime, Position};
use lockstep_protocol::record::Input;
use lockstep_protocol::window;
use std::time::Duration;

/// A guest without a clock of its own to wait for sees time move at least this often.
const CLOCK_EVERY: Duration = Duration::from_millis(5);

impl Recorder {
    /// Lets in what waits for a guest that was stopped in the middle of a run, if something does. After
    /// [`WindowError::PeerLost`] call it again.
    ///
    /// # Errors
    /// When the backup is lost, the machine refuses an input, or no delta can be made.
    pub fn stalled(&mut self, machine: &mut Machine) -> Result<(), WindowError> {
        if self.sink.is_lost() {
            return Err(PeerLost.into());
        }
        // Before its first exit a machine cannot be captured; it is short.
        if machine.position() == Position::ZERO {
            return Ok(());
        }
        self.batch.begin();
        self.gather(machine);
        let now = self.clock.now();
        let waiting = self.batch.wakes_guest();
        if !waiting && !is_late(machine, now) {
            return Ok(());
        }
        self.lateness.opened(now, waiting);
        if self.sink.has_backup() {
            self.send_delta(machine, false, now)?;
        } else {
            self.enter_batch(machine, false, None, Some(now))?;
        }
        self.lateness.closed(self.clock.now());
        Ok(())
    }

    /// Logs a delta and what enters behind it; with `mark`, the guest called for an output.
    pub(super) fn send_delta(
        &mut self,
        machine: &mut Machine,
        mark: bool,
        now: GuestTime,
    ) -> Result<(), WindowError> {
        let delta = self.deltas.make(machine).map_err(WindowError::Delta)?;
        let position = machine.position();
        for bytes in &delta.pages {
            self.sink.append(position, &[Input::DeltaPages { bytes }])?;
        }
        for port in &mut self.ports {
            self.batch.add_returned(port);
        }
        let batch = std::mem::take(&mut self.batch);
        let end = Input::DeltaEnd {
            bytes: &delta.end[..],
        };
        let inputs: Vec<_> = window::entries(mark, None, Some(now), batch.inputs()).collect();
        let logged: Vec<_> = std::iter::once(end).chain(inputs.iter().cloned()).collect();
        let appended = self.sink.append(position, &logged);
        let entered = appended
            .map_err(WindowError::from)
            .and_then(|_| inputs.iter().try_for_each(|input| Ok(machine.inject(input)?)));
        drop((logged, inputs));
        self.batch = batch;
        entered?;
        self.batch.clear();
        self.sink.flush();
        self.counts.add(&delta.pages, &delta.end);
        Ok(())
    }
}

/// Whether time alone is a reason: the guest's chips have something to say, or its clock stands for too long.
fn is_late(machine: &Machine, now: GuestTime) -> bool {
    let stands = now.get().saturating_sub(machine.time().get());
    machine.next_deadline().is_some_and(|deadline| now >= deadline) || stands >= CLOCK_EVERY.as_nanos() as u64
}
