//! Frames out: copied from the guest, then held until the gate lets them leave (protected) or sent at once (plain).
//!
//! Called by `device.rs` and `session.rs`. A chain is complete when its bytes are copied; when the frame leaves is
//! another matter, decided by the protocol's `Outbox` and nowhere else. Never writes guest memory of a protected VM.

use lockstep_protocol::ids::LogOffset;
use lockstep_protocol::outbox::{Outbox, OutboxLimit};
use lockstep_staging::limits::FRAME_BYTES_MAX;
use lockstep_staging::{DeviceEnd, boottime};

use crate::frame::{Pool, copy_frame};
use crate::limits::{ROUNDS_MAX, TX_BURST};
use crate::queue::{BrokenQueue, Done, PlainQueue};
use crate::tap::Tap;

/// Frames of a protected guest that wait for their causes to be acked.
#[derive(Debug)]
pub struct HeldFrames {
    outbox: Outbox<Vec<u8>>,
    pool: Pool,
}

impl Default for HeldFrames {
    fn default() -> Self {
        Self {
            outbox: Outbox::new(OutboxLimit::default()),
            pool: Pool::default(),
        }
    }
}

impl HeldFrames {
    /// Whether the longest frame could be held now; if not, no more is taken from the guest.
    pub fn has_room(&self) -> bool {
        self.outbox.has_room(FRAME_BYTES_MAX)
    }

    /// A buffer for a frame to hold.
    pub fn buffer(&mut self) -> Vec<u8> {
        self.pool.take()
    }

    /// Takes back a buffer that held no frame after all.
    pub fn give_back(&mut self, buffer: Vec<u8>) {
        self.pool.put(buffer);
    }

    /// Holds a frame until every record before `needs` is acked. The caller saw that there is room.
    pub fn hold(&mut self, needs: LogOffset, frame: Vec<u8>) {
        let held = self.outbox.hold(needs, frame.len(), frame);
        held.expect("the caller asks has_room before it makes a frame");
    }

    /// Lets every frame leave that may. The gate is looked at right before each one. Without a tap they are lost.
    pub fn release(&mut self, end: &mut DeviceEnd, tap: Option<&Tap>) {
        let mut released = 0;
        loop {
            let gate = end.gate();
            let Some(frame) = self.outbox.poll_release(&gate, boottime()) else {
                break;
            };
            tap.inspect(|tap| send(tap, &frame));
            released += 1;
            self.pool.put(frame);
        }
        if released > 0 {
            end.count_released(released);
        }
    }

    /// Drops everything, for good.
    pub fn discard(&mut self) -> usize {
        self.outbox.discard()
    }

    /// Tells the VMM what is held and for what it waits.
    pub fn publish(&self, end: &mut DeviceEnd) {
        end.publish_waiting(self.outbox.waiting_for(), self.outbox.len());
    }
}

/// The transmitting half of a plain device.
#[derive(Debug, Default)]
pub struct Tx {
    frame: Vec<u8>,
    done: Vec<Done>,
}

impl Tx {
    /// Sends what the driver made available. `true`: there may be more; others have their turn first.
    pub fn send_ready(&mut self, queue: &mut PlainQueue<'_>, tap: &Tap) -> Result<bool, BrokenQueue> {
        for _ in 0..ROUNDS_MAX {
            queue.spare_kicks()?;
            let all = self.send_burst(queue, tap)?;
            if !self.done.is_empty() {
                queue.complete(&self.done)?;
                queue.notify()?;
            }
            // What came between the last look and asking for kicks brings no kick.
            if all && !queue.ask_for_kicks()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Fills `done` with at most a burst; says whether the queue was emptied.
    fn send_burst(&mut self, queue: &mut PlainQueue<'_>, tap: &Tap) -> Result<bool, BrokenQueue> {
        self.done.clear();
        while self.done.len() < TX_BURST {
            let Some(head) = queue.pop()? else { return Ok(true) };
            let copied = queue
                .chain(head)
                .map(|chain| copy_frame(queue.memory(), &chain, &mut self.frame));
            // A chain that is no frame goes back as any other: nothing is ever written to it.
            if let Ok(Ok(())) = copied {
                send(tap, &self.frame);
            }
            self.done.push(Done { head, length: 0 });
        }
        Ok(false)
    }
}

/// A frame that the tap does not take is lost, as on a bad wire.
fn send(tap: &Tap, frame: &[u8]) {
    if let Err(error) = tap.send(frame) {
        tracing::debug!(%error, length = frame.len(), "The tap did not take a frame");
    }
}

#[cfg(test)]
mod tests;
