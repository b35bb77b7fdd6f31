//! A bit of a backup's machine that flips, for the stories of backups that diverge: `lockstep run --flip-bit memory@N` or
//! `register@N`, hidden and never set outside of tests. N is how many records enter before that.

use crate::machine::Machine;
use std::str::FromStr;
use vm_memory::{Bytes, GuestAddress};

/// Far from everything that the micro guest touches on its own in a short life.
const ADDRESS: GuestAddress = GuestAddress(40 << 20);

/// What flips, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flip {
    part: Part,
    records_left: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Memory,
    Register,
}

/// The word names no bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Write memory@N or register@N, with a number of records")]
pub struct BadFlip;

impl FromStr for Flip {
    type Err = BadFlip;

    fn from_str(text: &str) -> Result<Self, BadFlip> {
        let (part, records) = text.split_once('@').ok_or(BadFlip)?;
        Ok(Self {
            part: match part {
                "memory" => Part::Memory,
                "register" => Part::Register,
                _ => return Err(BadFlip),
            },
            records_left: records.parse().map_err(|_| BadFlip)?,
        })
    }
}

impl Flip {
    /// A record has entered.
    pub(super) fn after_record(&mut self, machine: &mut Machine) {
        let Some(left) = self.records_left.checked_sub(1) else {
            return;
        };
        self.records_left = left;
        if left > 0 {
            return;
        }
        tracing::warn!(part = ?self.part, position = %machine.position(), "A bit flips, as was asked for");
        match self.part {
            Part::Memory => {
                let byte = machine.memory().read_obj::<u8>(ADDRESS).unwrap_or_default();
                if let Err(error) = machine.memory().write_obj(byte ^ 1, ADDRESS) {
                    tracing::error!(%error, "This VM is too small for that bit");
                }
            }
            Part::Register => {
                if let Err(error) = machine.flip_register() {
                    tracing::error!(%error, "KVM does not let a register be changed");
                }
            }
        }
    }
}
