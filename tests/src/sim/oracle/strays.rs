//! Backups that know that their guest is not their primary's: what they ack from then on counts for nothing (I16).

use std::collections::BTreeMap;

use lockstep_protocol::ids::LogOffset;

use crate::sim::wires::ConnId;

/// They, by their sessions, and what each held when it found out.
#[derive(Debug, Default)]
pub(crate) struct Strays(BTreeMap<ConnId, LogOffset>);

impl Strays {
    /// A backup found out. It may have acked everything before `held`.
    pub(crate) fn strayed(&mut self, session: ConnId, held: LogOffset) {
        self.0.insert(session, held);
    }

    /// Its guest is its primary's again.
    pub(crate) fn healed(&mut self, session: ConnId) {
        self.0.remove(&session);
    }

    /// The primary of a session takes everything before `upto` for acked, and releases what needs it. An error is a
    /// sentence.
    pub(crate) fn acked(&self, session: ConnId, upto: LogOffset) -> Result<(), String> {
        match self.0.get(&session) {
            Some(held) if upto > *held => Err(format!(
                "it counts records up to {upto} as acked, on the word of a backup that had diverged at {held}"
            )),
            _ => Ok(()),
        }
    }
}
