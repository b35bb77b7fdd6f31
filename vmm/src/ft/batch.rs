//! What is about to enter in one window: copied once out of the rings that device processes write, then checked.
//!
//! The recorder fills it before it logs and injects. Bytes are taken out of shared memory here and nowhere else, so
//! what is logged is what is injected, whatever a device process does to its ring meanwhile.

use super::port::DevicePort;
use crate::machine::{Machine, ReceiveRoom};
use crate::virtio::mmio::DeviceKind;
use crate::virtio::ring::{QUEUE_SIZE_MAX, Ring};
use lockstep_protocol::ids::{DeviceId, Head, QueueIndex};
use lockstep_protocol::record::Input;
use lockstep_staging::message::Staged;
use std::ops::Range;

/// Inputs with bytes that enter in one window at most: bounds how long the guest stands still.
const INPUTS_MAX: usize = 128;
/// Bytes after which no further input joins the window.
const BYTES_MAX: usize = 256 << 10;
/// Chains that a device is done with are given back when something else enters, or when there are this many: by
/// themselves they are no reason to wake a guest.
const RETURNED_MAX: u16 = QUEUE_SIZE_MAX / 2;

/// One input with its bytes still in the batch's own store.
#[derive(Debug)]
enum Plan {
    Frame {
        device: DeviceId,
        bytes: Range<usize>,
    },
    Completion {
        device: DeviceId,
        queue: QueueIndex,
        head: Head,
        bytes: Range<usize>,
    },
    Returned {
        device: DeviceId,
        queue: QueueIndex,
        count: u16,
    },
    Console {
        bytes: Range<usize>,
    },
}

/// The inputs of one window.
#[derive(Debug, Default)]
pub(super) struct Batch {
    store: Vec<u8>,
    scratch: Vec<u8>,
    plans: Vec<Plan>,
    /// The buffers that are left for frames in this window; one network card has them all.
    room: Option<ReceiveRoom>,
    wakes: bool,
}

impl Batch {
    /// A new window begins; what did not enter in the last one stays.
    pub(super) fn begin(&mut self) {
        self.room = None;
    }

    /// Takes in what `port` staged, as far as this window has room and the guest has buffers.
    pub(super) fn gather(&mut self, port: &mut DevicePort, machine: &Machine) {
        let Some(rings) = machine.device(port.id()).map(|device| device.rings()) else {
            return;
        };
        self.gather_completions(port, rings);
        if port.kind() == DeviceKind::Net {
            self.gather_frames(port, machine);
        }
    }

    /// Takes in what was typed at the console.
    pub(super) fn add_typed(&mut self, typed: &[u8]) {
        if !typed.is_empty() {
            let start = self.store.len();
            self.store.extend_from_slice(typed);
            self.plans.push(Plan::Console {
                bytes: start..self.store.len(),
            });
            self.wakes = true;
        }
    }

    /// Whether the guest should be woken for what is here.
    pub(super) fn wakes_guest(&self) -> bool {
        self.wakes
    }

    /// Adds the chains that `port` is done with: something enters anyway.
    pub(super) fn add_returned(&mut self, port: &mut DevicePort) {
        for (queue, count) in (0_u16..).zip(&mut port.returned).filter(|(_, count)| **count > 0) {
            let plan = Plan::Returned {
                device: port.id,
                queue: QueueIndex::new(queue),
                count: std::mem::take(count),
            };
            self.plans.push(plan);
        }
    }

    /// The inputs, in the order in which they enter.
    pub(super) fn inputs(&self) -> impl Iterator<Item = Input<&[u8]>> {
        self.plans.iter().map(|plan| match plan {
            Plan::Frame { device, bytes } => Input::Frame {
                device: *device,
                bytes: &self.store[bytes.clone()],
            },
            Plan::Completion {
                device,
                queue,
                head,
                bytes,
            } => Input::Completion {
                device: *device,
                queue: *queue,
                head: *head,
                bytes: &self.store[bytes.clone()],
            },
            Plan::Returned { device, queue, count } => Input::Returned {
                device: *device,
                queue: *queue,
                count: *count,
            },
            Plan::Console { bytes } => Input::Console {
                bytes: &self.store[bytes.clone()],
            },
        })
    }

    /// Everything entered; the next window begins.
    pub(super) fn clear(&mut self) {
        self.store.clear();
        self.plans.clear();
        self.room = None;
        self.wakes = false;
    }

    fn has_room(&self) -> bool {
        self.plans.len() < INPUTS_MAX && self.store.len() < BYTES_MAX
    }

    fn gather_completions(&mut self, port: &mut DevicePort, rings: &[Ring]) {
        while port.is_alive() && self.has_room() {
            let answer = match port.pop_answer(&mut self.scratch) {
                Ok(Some(answer)) => answer,
                Ok(None) => return,
                Err(fault) => return port.fail(&fault),
            };
            match (port.kind(), answer) {
                (DeviceKind::Blk, Staged::Completion { queue, head }) => {
                    self.plan_completion(port, rings, queue, head)
                }
                (DeviceKind::Net, Staged::Returned { queue, count }) => {
                    self.count_returned(port, rings, queue, count)
                }
                // Both of one chain would be one too many.
                _ => port.fail(&Strange("what its kind of device does not say")),
            }
        }
    }

    fn plan_completion(&mut self, port: &mut DevicePort, rings: &[Ring], queue: QueueIndex, head: Head) {
        let in_flight = rings
            .get(usize::from(queue.get()))
            .is_some_and(|ring| ring.has_inflight(head));
        let twice = self.plans.iter().any(|plan| {
            matches!(plan, Plan::Completion { device, queue: q, head: h, .. } if (*device, *q, *h) == (port.id, queue, head))
        });
        if !in_flight || twice {
            return port.fail(&Strange("a completion for a chain that it was not given"));
        }
        let bytes = self.keep();
        self.plans.push(Plan::Completion {
            device: port.id,
            queue,
            head,
            bytes,
        });
        self.wakes = true;
    }

    fn count_returned(&mut self, port: &mut DevicePort, rings: &[Ring], queue: QueueIndex, count: u16) {
        let index = usize::from(queue.get());
        let known = rings.get(index).map_or(0, Ring::inflight_len);
        match port.returned.get_mut(index) {
            Some(sum) if usize::from(*sum) + usize::from(count) <= known => {
                *sum += count;
                self.wakes |= *sum >= RETURNED_MAX;
            }
            _ => port.fail(&Strange("more chains back than it was given")),
        }
    }

    fn gather_frames(&mut self, port: &mut DevicePort, machine: &Machine) {
        while self.has_room() && port.fetch_frame() {
            let room = self.room.get_or_insert_with(|| machine.receive_room(port.id));
            if room.take(port.frame.len()) {
                let start = self.store.len();
                self.store.extend_from_slice(&port.frame);
                self.plans.push(Plan::Frame {
                    device: port.id,
                    bytes: start..self.store.len(),
                });
                self.wakes = true;
            } else if !room.is_hopeless() {
                // It waits, and those behind it, until the guest has buffers.
                return;
            }
            port.frame.clear();
        }
    }

    fn keep(&mut self) -> Range<usize> {
        let start = self.store.len();
        self.store.extend_from_slice(&self.scratch);
        start..self.store.len()
    }
}

/// A device process broke the rules of staging.
#[derive(Debug, thiserror::Error)]
#[error("The process staged {0}")]
struct Strange(&'static str);
