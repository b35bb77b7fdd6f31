//! What a live host orders from its device processes: what the guest kicked, in the window of the kick, and after a takeover
//! all that is in flight. What may leave because of it, the gate decides.

use super::Recorder;
use crate::machine::{Kick, Machine};
use lockstep_protocol::ids::{LogOffset, QueueIndex};

impl Recorder {
    /// Orders what was kicked, once.
    pub(super) fn order(&mut self, kicks: &mut Vec<Kick>, needs: LogOffset) {
        for kick in kicks.drain(..) {
            let Some(port) = self.ports.iter_mut().find(|port| port.id() == kick.device) else {
                continue;
            };
            let count = kick.heads.len();
            for head in kick.heads {
                port.order(kick.queue, head, needs);
            }
            port.end_orders(needs, count);
        }
    }

    /// Orders every chain that is in flight in the machine: after a takeover nobody else will complete them.
    pub fn reissue(&mut self, machine: &Machine) {
        let mut requests = 0;
        for port in &mut self.ports {
            let Some(device) = machine.device(port.id()).filter(|device| device.is_ready()) else {
                continue;
            };
            for (queue, ring) in (0_u16..).zip(device.rings()) {
                for head in ring.inflight() {
                    port.order(QueueIndex::new(queue), head, LogOffset::ZERO);
                    requests += 1;
                }
            }
            port.flush();
        }
        tracing::info!(requests, "What the lost primary left undone is ordered again");
    }
}
