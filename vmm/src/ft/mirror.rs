//! A backup's own image of a mirrored disk: what its process was ordered to do with it, and what of that is done.
//!
//! The replayer calls it in windows. What the guest kicks is ordered here as well as on the primary, and at once: the
//! backup is never further than the primary, so whatever its guest asks the primary's guest has asked too. What comes of
//! it does not enter the guest, for the log says how each request ended. But a logged completion enters only when the
//! same request is done here (I11): before that the guest could use the buffer for something else while it is still being
//! copied, and a host that goes live could miss what the log says it has.
//!
//! Everything in flight at a takeover is issued again, like on a shared disk (`Recorder::reissue`), in the order in
//! which the guest gave it. That is harmless: processes change an image strictly in order, so what is not completed in
//! the log comes after all that is. First the process finishes what it has (I12): it never has one head twice, and
//! what it says afterwards is all meant for the guest.

use super::port::DevicePort;
use crate::machine::Kick;
use lockstep_protocol::ids::{DeviceId, Head, LogOffset, QueueIndex};
use lockstep_protocol::record::Input;
use lockstep_staging::message::Staged;
use lockstep_staging::mirrored::Mirrored;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How long the own disk may take for one request. The primary waits for its backup long before that (I8); a disk that
/// takes longer protects nobody.
const REQUEST_MAX: Duration = Duration::from_secs(30);

/// What `VIRTIO_BLK_S_OK` looks like at the end of a completion.
const OK: u8 = 0;

/// Why this host's image does not mirror the primary's any more. Such a host is no backup.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MirrorError {
    /// The image did not take what the primary's took.
    #[error(
        "The disk image of this host failed ({0}) where the primary's did not, so this host is no backup any more; make \
         room or replace its disk, and when the VM is stopped copy the other host's image here and start both again"
    )]
    Failed(String),
    /// It takes for ever.
    #[error(
        "The disk of this host has not finished a request for {} s, so this host is no backup any more; look after the \
         disk, and when the VM is stopped copy the other host's image here and start both again",
        REQUEST_MAX.as_secs()
    )]
    Stuck,
    /// Its process is gone or broke the rules.
    #[error(
        "The disk process of this host is gone, so this host is no backup any more; when the VM is stopped copy the \
         other host's image here and start both again"
    )]
    Gone,
}

/// The requests of the one mirrored disk of a VM.
#[derive(Debug)]
pub struct Mirror {
    device: DeviceId,
    /// Ordered, and not done as far as we heard.
    open: BTreeSet<Request>,
    /// Done, and not completed in the log yet. With `open` never more than the guest has in flight.
    done: BTreeMap<Request, Mirrored>,
    scratch: Vec<u8>,
    /// The primary's disk failed where ours did not; said once.
    told: bool,
}

type Request = (QueueIndex, Head);

impl Mirror {
    /// The mirrored disk among `ports`, if the VM has one.
    pub(super) fn of(ports: &[DevicePort]) -> Option<Self> {
        ports.iter().find(|port| port.is_mirrored()).map(|port| Self {
            device: port.id(),
            open: BTreeSet::new(),
            done: BTreeMap::new(),
            scratch: Vec::new(),
            told: false,
        })
    }

    /// Which device it is.
    pub(super) fn device(&self) -> DeviceId {
        self.device
    }

    /// Lets the process mirror what the guest kicked.
    pub(super) fn order(&mut self, port: &mut DevicePort, kick: &Kick) {
        for head in &kick.heads {
            let request = (kick.queue, *head);
            // A guest that gives a head twice is ignored here as it is by the primary's process.
            if !self.done.contains_key(&request) && self.open.insert(request) {
                port.order(kick.queue, *head, LogOffset::ZERO);
            }
        }
        port.flush();
    }

    /// `input` is about to enter: waits until the own image is as far as it says.
    ///
    /// # Errors
    /// When it never will be.
    pub(super) fn await_input(
        &mut self,
        port: &mut DevicePort,
        input: &Input<&[u8]>,
    ) -> Result<(), MirrorError> {
        let Input::Completion {
            device,
            queue,
            head,
            bytes,
        } = input
        else {
            return Ok(());
        };
        if *device != self.device {
            return Ok(());
        }
        let mirrored = self.finish(port, (*queue, *head))?;
        self.compare(&mirrored, bytes.last() == Some(&OK))
    }

    /// Waits until the process has nothing to do any more, and forgets how it went.
    ///
    /// # Errors
    /// When it does not come to an end.
    pub(super) fn settle(&mut self, port: &mut DevicePort) -> Result<(), MirrorError> {
        while let Some(request) = self.open.first().copied() {
            self.finish(port, request)?;
        }
        self.done.clear();
        Ok(())
    }

    /// Waits until one request is done and says how it went. One that was never ordered is not waited for: whoever
    /// injects its completion will refuse it.
    fn finish(&mut self, port: &mut DevicePort, request: Request) -> Result<Mirrored, MirrorError> {
        let deadline = Instant::now() + REQUEST_MAX;
        loop {
            self.hear(port);
            if let Some(mirrored) = self.done.remove(&request) {
                return Ok(mirrored);
            }
            if !self.open.contains(&request) {
                return Ok(Mirrored::Nothing);
            }
            if !port.is_alive() {
                return Err(MirrorError::Gone);
            }
            if Instant::now() > deadline {
                return Err(MirrorError::Stuck);
            }
            port.nap();
        }
    }

    /// Takes in what the process says.
    fn hear(&mut self, port: &mut DevicePort) {
        while port.is_alive() {
            match port.pop_answer(&mut self.scratch) {
                Ok(None) => return,
                Ok(Some(Staged::Completion { queue, head })) if self.open.remove(&(queue, head)) => {
                    match Mirrored::from_bytes(&self.scratch) {
                        Some(mirrored) => drop(self.done.insert((queue, head), mirrored)),
                        None => port.fail(&Strange("what no disk process of a backup says")),
                    }
                }
                Ok(Some(_)) => port.fail(&Strange("something about a chain that it was not given")),
                Err(fault) => port.fail(&fault),
            }
        }
    }

    /// How the request ended here and, by the log, on the primary.
    fn compare(&mut self, mirrored: &Mirrored, primary_ok: bool) -> Result<(), MirrorError> {
        match mirrored {
            Mirrored::Failed(why) if primary_ok => Err(MirrorError::Failed(why.clone())),
            Mirrored::Done if !primary_ok => {
                if !std::mem::replace(&mut self.told, true) {
                    tracing::warn!(
                        "The primary's disk failed where this host's did not; the guest sees an I/O error, and the two \
                         images may differ there"
                    );
                }
                Ok(())
            }
            Mirrored::Nothing | Mirrored::Done | Mirrored::Failed(_) => Ok(()),
        }
    }
}

/// A device process broke the rules of staging.
#[derive(Debug, thiserror::Error)]
#[error("The process staged {0}")]
struct Strange(&'static str);

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror() -> Mirror {
        Mirror {
            device: DeviceId::new(1),
            open: BTreeSet::new(),
            done: BTreeMap::new(),
            scratch: Vec::new(),
            told: false,
        }
    }

    #[test]
    fn an_image_that_failed_where_the_primarys_did_not_is_the_end_of_a_backup() {
        let failed = Mirrored::Failed("No space left on device".to_owned());
        let error = mirror().compare(&failed, true).unwrap_err();
        let sentence = error.to_string();
        assert!(
            sentence.contains("failed (No space left on device) where the primary's did not"),
            "{sentence}"
        );
    }

    #[test]
    fn an_error_that_the_guest_was_told_of_is_no_end_and_is_said_once_if_only_the_primary_has_it() {
        let mut mirror = mirror();
        let failed = Mirrored::Failed("Input/output error".to_owned());
        assert_eq!(mirror.compare(&failed, false), Ok(()));
        assert!(!mirror.told);
        assert_eq!(mirror.compare(&Mirrored::Done, false), Ok(()));
        assert!(mirror.told);
    }

    #[test]
    fn requests_that_change_nothing_and_those_that_both_hosts_did_are_fine() {
        let mut mirror = mirror();
        for (mirrored, primary_ok) in [
            (Mirrored::Nothing, true),
            (Mirrored::Nothing, false),
            (Mirrored::Done, true),
        ] {
            assert_eq!(mirror.compare(&mirrored, primary_ok), Ok(()));
        }
        assert!(!mirror.told);
    }
}
