//! The VMM of a protected VM, as far as a disk can see it: it orders, moves the gate and takes completions.

use std::os::fd::AsFd;
use std::path::Path;

use lockstep_protocol::{Head, Instant, LogOffset, QueueIndex};
use lockstep_staging::{
    ConnectError, DeviceFacts, DeviceKind, GateWriter, Mode, Order, Staged, VmmEnd, VmmFacts,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vhost::vhost_user::Frontend;

use super::{Device, Guest, IN, OUT, PATIENCE, eventually};

/// The VMM of a protected VM, as far as a disk can see it.
pub(crate) struct Vmm {
    pub(crate) end: VmmEnd,
    pub(crate) gate: GateWriter,
    pub(crate) guest: Guest,
    pub(crate) facts: DeviceFacts,
    _front_end: Frontend,
}

const QUEUE: QueueIndex = QueueIndex::ZERO;

impl Vmm {
    pub(crate) fn connect(device: &Device) -> Self {
        Self::connect_at(device.folder.path(), device.front_end())
    }

    pub(crate) fn connect_at(folder: &Path, mut front_end: Frontend) -> Self {
        let (end, facts) = staging_in_turn(folder, false);
        let guest = Guest::new();
        guest.attach(&mut front_end, false);
        let gate = end.gate();
        Self {
            end,
            gate,
            guest,
            facts,
            _front_end: front_end,
        }
    }

    /// A primary whose backup has acked this much, with a lease that does not end.
    pub(crate) fn live(device: &Device, acked: u64) -> Self {
        let vmm = Self::connect(device);
        vmm.gate.publish_acked(LogOffset::new(acked));
        vmm.gate.publish_lease(Instant::FOREVER);
        vmm.gate.set_mode(Mode::Live);
        vmm
    }

    pub(crate) fn order(&mut self, first: u16, needs: u64) {
        let order = Order {
            queue: QUEUE,
            head: Head::new(first),
            needs: LogOffset::new(needs),
        };
        self.end.push_order(order).unwrap();
        self.end.flush_orders();
    }

    pub(crate) fn write(&mut self, head: u16, sector: u64, content: &[u8], needs: u64) -> u16 {
        let first = self.guest.request(head, OUT, sector, content, 0);
        self.order(first, needs);
        first
    }

    /// The next completion: whose, and its bytes.
    pub(crate) fn completion(&mut self) -> (u16, Vec<u8>) {
        eventually("a completion", || self.staged_completion())
    }

    /// The same, if it is there.
    pub(crate) fn staged_completion(&mut self) -> Option<(u16, Vec<u8>)> {
        let mut bytes = Vec::new();
        match self.end.pop_completion(&mut bytes).unwrap()? {
            Staged::Completion { queue: QUEUE, head } => Some((head.get(), bytes)),
            other => panic!("{other:?}"),
        }
    }

    /// Who said that it sleeps is woken.
    pub(crate) fn wait_for_doorbell(&self) {
        let doorbell = self.end.doorbell().as_fd();
        let limit = PollTimeout::try_from(PATIENCE).unwrap();
        let rang = poll(&mut [PollFd::new(doorbell, PollFlags::POLLIN)], limit).unwrap();
        assert_eq!(rang, 1, "the doorbell is silent");
    }

    /// A read makes its way through the device: everything before it was looked at.
    pub(crate) fn read(&mut self, head: u16, sector: u64) -> Vec<u8> {
        let first = self.guest.request(head, IN, sector, &[], 512);
        self.order(first, 0);
        let (who, mut bytes) = self.completion();
        assert_eq!((who, bytes.pop()), (first, Some(0)));
        bytes
    }

    pub(crate) fn wait_for_held(&self, count: u64) {
        eventually("outputs to be held", || {
            (self.gate.snapshot().held == count).then_some(())
        });
    }
}

pub(crate) fn staging(folder: &Path) -> Result<(VmmEnd, DeviceFacts), ConnectError> {
    staging_and_ask(folder, false)
}

/// Connects when the VMM before is gone, which is noticed in its own time: a process that another test starts just then has
/// its socket for a moment.
pub(crate) fn staging_in_turn(folder: &Path, compares_images: bool) -> (VmmEnd, DeviceFacts) {
    let connected = eventually("a disk without a VMM", || {
        match staging_and_ask(folder, compares_images) {
            Err(ConnectError::Refused { .. }) => None,
            other => Some(other),
        }
    });
    connected.unwrap()
}

/// Connects, and wants to know what the image holds if `compares_images`.
pub(crate) fn staging_and_ask(
    folder: &Path,
    compares_images: bool,
) -> Result<(VmmEnd, DeviceFacts), ConnectError> {
    let facts = VmmFacts {
        kind: DeviceKind::Blk,
        compares_images,
        release: "test".to_owned(),
    };
    VmmEnd::connect(&folder.join("staging.sock"), &facts, PATIENCE)
}
