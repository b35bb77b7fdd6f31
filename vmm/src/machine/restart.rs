//! A guest that restarts: the same VM, on the same log, with memory and chips as after power-on.
//!
//! [`Machine::step`] comes here once the guest asked for it. It happens at a position like everything else, so both hosts
//! restart together, and the new life is protected as the old one was. Its first randomness comes out of the last one's.

use super::{BuildError, Exit, IdleLimit, Machine, PoweredUp};
use crate::board::Board;
use crate::memory;
use crate::virtio::mmio::MmioDevice;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

impl Machine {
    /// Starts the guest anew, or waits for another input as long as a device still has something to do for the old
    /// life: it reads the memory that will be emptied. Nor does it happen under a copy of the VM, which only a host that
    /// is alone is in: what is noted of the old life's writes tells nothing of the new one's.
    pub(super) fn restart(&mut self) -> Result<Exit, BuildError> {
        self.parts.position = self.parts.position.next();
        if self.is_busy() {
            return Ok(Exit {
                idle: Some(IdleLimit(None)),
                ..Exit::default()
            });
        }
        let parts = &mut self.parts;
        let start = Instant::now();
        memory::clear(&parts.memory)?;
        let cleared = start.elapsed();
        let devices = parts.devices.len();
        let (cmdline, count) = (&parts.cmdline, self.count);
        let guest = self.guest.prepared(count)?;
        let up = PoweredUp::new(guest, &parts.memory, cmdline, devices, count, &self.pulse)?;
        (self.vcpus, self.vm, self.hook) = (up.vcpus, Arc::new(up.vm), None);
        (parts.board, parts.seed) = (up.board, up.seed);
        parts.devices.iter_mut().for_each(MmioDevice::reset);
        if let Board::Pc(pc) = &mut parts.board {
            // Its time goes on; how long it runs counts from here.
            pc.set_time(parts.time, &parts.memory);
        }
        let position = parts.position.get().to_le_bytes();
        parts.power_on(*blake3::keyed_hash(&parts.randomness, &position).as_bytes());
        parts.restarts = false;
        tracing::info!(
            position = %parts.position,
            cleared_in = ?cleared,
            done_in = ?start.elapsed(),
            "The guest restarts"
        );
        Ok(Exit {
            restarted: true,
            ..Exit::default()
        })
    }

    /// Whether something of the old life has to end before the new one begins.
    pub(super) fn is_busy(&self) -> bool {
        let works = |device: &MmioDevice| device.rings().iter().any(|ring| ring.inflight_len() > 0);
        self.parts.devices.iter().any(works) || self.tracked.load(Ordering::Acquire)
    }
}
