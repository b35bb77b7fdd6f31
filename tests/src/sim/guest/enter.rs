//! How inputs enter the simulated guest: one function for a primary and a backup, as in `vmm/src/ft/inject.rs`.

use lockstep_protocol::ids::{DeviceId, Head, Position};
use lockstep_protocol::record::Input;

use super::super::dice::Dice;
use super::{Asked, Block, Guest, Phase, Work};

/// The network card.
pub(crate) const NET: DeviceId = DeviceId::new(0);
/// The disk.
pub(crate) const DISK: DeviceId = DeviceId::new(1);

/// An input that does not fit: this is no longer the machine that it was recorded on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misfit {
    /// Power-on is an input of position 0 alone.
    #[error("The machine is switched on a second time")]
    SecondPowerOn,
    /// The guest's clock goes back.
    #[error("The guest's clock goes back")]
    TimeGoesBack,
    /// A chain is completed that is not in flight.
    #[error("Chain {0} is completed, which is not in flight")]
    NotInFlight(Head),
    /// More chains are returned than are in flight.
    #[error("{0} chains are returned, more than are in flight")]
    TooManyReturned(u16),
    /// A delta enters whole.
    #[error("A piece of a delta is taken for an input")]
    Delta,
    /// The machine has no such device or queue.
    #[error("An input is for device {0}, which the machine does not have")]
    NoDevice(DeviceId),
}

impl Guest {
    /// Lets `input` enter in the open window.
    pub(crate) fn enter(&mut self, input: &Input<&[u8]>) -> Result<(), Misfit> {
        match *input {
            Input::PowerOn { .. } if self.position > Position::ZERO => Err(Misfit::SecondPowerOn),
            Input::PowerOn { seed } => {
                let [a, b, c, d, e, f, g, h, ..] = seed;
                self.noise = Dice::of(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
                Ok(())
            }
            Input::Mark | Input::Digest { .. } => Ok(()),
            Input::Tick { time } if time < self.time => Err(Misfit::TimeGoesBack),
            Input::Tick { time } => {
                self.time = time;
                Ok(())
            }
            Input::Frame { device: NET, bytes } => {
                // A frame without a buffer is lost, on both hosts alike.
                let asked = Asked::read(bytes).filter(|_| self.receive_room() > 0);
                self.asked.extend(asked);
                Ok(())
            }
            Input::Completion {
                device: DISK,
                head,
                bytes,
                ..
            } => self.complete(head, bytes),
            Input::Returned {
                device: NET, count, ..
            } => {
                if usize::from(count) > self.sending.len() {
                    return Err(Misfit::TooManyReturned(count));
                }
                self.sending.drain(..usize::from(count));
                Ok(())
            }
            Input::Console { .. } => Ok(()),
            Input::DeltaPages { .. } | Input::DeltaEnd { .. } | Input::Heal => Err(Misfit::Delta),
            Input::Frame { device, .. }
            | Input::Completion { device, .. }
            | Input::Returned { device, .. } => Err(Misfit::NoDevice(device)),
        }
    }

    fn complete(&mut self, head: Head, bytes: &[u8]) -> Result<(), Misfit> {
        let known = self.keeping.iter().position(|(job, _)| job.head == head);
        let Some((job, reply)) = known.and_then(|index| self.keeping.remove(index)) else {
            return Err(Misfit::NotInFlight(head));
        };
        if let Some(reply) = reply {
            self.callers[usize::from(reply.client)].reply = Some(reply);
            self.ready.push_back(reply);
        }
        if let (Work::Read(_), Phase::Booting { next, best }, Some(Block(found))) =
            (job.work, self.phase, Block::read(bytes))
        {
            self.phase = Phase::Booting {
                next,
                best: best.max(found),
            };
        }
        Ok(())
    }
}
