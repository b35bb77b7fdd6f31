//! The end of an epoch: a machine with several vCPUs cannot be recomputed, so each of its windows begins with a delta. What
//! waits enters behind that, and what the guest called for needs all of it.
//!
//! The run loop of a live host calls [`Recorder::rest`] while the vCPUs run, and [`Recorder::window`] when they stand
//! still. Records, outputs and takeover are those of any other machine.

use super::{PeerLost, Recorder, WindowError, wait};
use crate::ft::port::{DevicePort, follow_driver};
use crate::machine::{Exit, Machine};
use crate::stop::Stop;
use std::thread;
use std::time::Instant;

impl Recorder {
    /// Sleeps until the epoch that is under way should end: something waits or is called for, or it has lasted long enough.
    pub fn rest(&mut self, is_called: &dyn Fn() -> bool, stop: &Stop) {
        let begun = Instant::now();
        self.pace.begin(begun);
        loop {
            let is_wanted = is_called()
                || stop.is_asked()
                || self.sink.is_lost()
                || self.is_wanted()
                || self.typed.is_waiting()
                || self.ports.iter().any(DevicePort::has_inputs);
            let left = self.pace.left(begun.elapsed(), is_wanted);
            if left.is_zero() {
                return self.pace.end(Instant::now());
            }
            if is_wanted {
                thread::sleep(left);
            } else {
                wait::sleep(&self.ports, &self.waker, Some(left));
            }
        }
    }

    /// Serves the window at the end of an epoch. After [`WindowError::PeerLost`] call it again with the same `exit`.
    pub(super) fn end_epoch(&mut self, machine: &mut Machine, exit: &mut Exit) -> Result<(), WindowError> {
        if self.sink.is_lost() {
            return Err(PeerLost.into());
        }
        follow_driver(&mut self.ports, machine, exit);
        self.batch.begin();
        self.gather(machine);
        let now = self.clock.now();
        self.lateness.opened(now, self.batch.wakes_guest());
        let mark = exit.calls();
        if self.sink.has_backup() {
            // A life that is over is not followed into the next one, but what it wrote last is sent.
            if !machine.restarts() {
                self.follow_writes(machine)?;
            }
            self.send_delta(machine, mark, now)?;
            if machine.restarts() {
                self.deltas.stop();
            }
        } else {
            self.enter_batch(machine, mark, None, Some(now))?;
        }
        let needs = self.sink.end();
        self.order(&mut exit.kicks, needs);
        self.lateness.closed(self.clock.now());
        Ok(())
    }
}
