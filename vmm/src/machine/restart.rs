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
        let parts = &mut self.parts;
        parts.position = parts.position.next();
        let busy = |device: &MmioDevice| device.rings().iter().any(|ring| ring.inflight_len() > 0);
        if parts.devices.iter().any(busy) || self.tracked.load(Ordering::Acquire) {
            return Ok(Exit {
                idle: Some(IdleLimit(None)),
                ..Exit::default()
            });
        }
        let start = Instant::now();
        memory::clear(&parts.memory)?;
        let cleared = start.elapsed();
        let devices = parts.devices.len();
        let up = PoweredUp::new(&self.guest, &parts.memory, &parts.cmdline, devices, &self.pulse)?;
        (self.vcpu, self.vm, self.hook) = (up.vcpu, Arc::new(up.vm), None);
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
}
