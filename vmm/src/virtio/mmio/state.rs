//! A register window as it travels to another host. `state.rs` asks for it and gives it back to a window of the same
//! device; what the device offers never changes on the way.

use super::{DeviceKind, MmioDevice};
use crate::virtio::ring::{Ring, RingState};
use lockstep_protocol::ids::DeviceId;
use serde::{Deserialize, Serialize};

/// What a window is: what the guest found in it, and how far its driver and the rings are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MmioState {
    id: DeviceId,
    kind: DeviceKind,
    offered: u64,
    config_space: Vec<u8>,
    accepted: u64,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    status: u32,
    interrupt_status: u32,
    rings: Vec<RingState>,
}

/// Why a window cannot take over what another one was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowMisfit {
    /// Another kind of device.
    #[error("Device {id} is a {theirs} there and a {ours} here")]
    Kind {
        /// Which device.
        id: DeviceId,
        /// What it was.
        theirs: DeviceKind,
        /// What it is here.
        ours: DeviceKind,
    },
    /// Other features or another configuration space.
    #[error("Device {0} offers the guest something else here: its features, MAC address or size differ")]
    Offer(DeviceId),
    /// No queue can be in the state that it is said to be in.
    #[error("The queues of device {0} are in a state that no queue can be in")]
    Rings(DeviceId),
}

impl MmioDevice {
    /// The window, to be built again elsewhere.
    #[must_use]
    pub fn state(&self) -> MmioState {
        MmioState {
            id: self.id,
            kind: self.kind,
            offered: self.offered,
            config_space: self.config_space.clone(),
            accepted: self.accepted,
            device_features_sel: self.device_features_sel,
            driver_features_sel: self.driver_features_sel,
            queue_sel: self.queue_sel,
            status: self.status,
            interrupt_status: self.interrupt_status,
            rings: self.rings.iter().map(Ring::state).collect(),
        }
    }

    /// Becomes what the other window was.
    ///
    /// # Errors
    /// When it was one of another device; this one is then unchanged.
    pub fn restore(&mut self, state: &MmioState) -> Result<(), WindowMisfit> {
        let id = self.id;
        if (state.id, state.kind) != (id, self.kind) {
            return Err(WindowMisfit::Kind {
                id,
                theirs: state.kind,
                ours: self.kind,
            });
        }
        if state.offered != self.offered || state.config_space != self.config_space {
            return Err(WindowMisfit::Offer(id));
        }
        let rings: Option<Vec<_>> = state.rings.iter().map(Ring::from_state).collect();
        let rings = rings.filter(|rings| rings.len() == self.rings.len());
        self.rings = rings.ok_or(WindowMisfit::Rings(id))?;
        self.accepted = state.accepted;
        self.device_features_sel = state.device_features_sel;
        self.driver_features_sel = state.driver_features_sel;
        self.queue_sel = state.queue_sel;
        self.status = state.status;
        self.interrupt_status = state.interrupt_status;
        Ok(())
    }
}
