//! What a primary hears of a backup that has diverged, and what it does about it. The driver hands on what the backup says,
//! the vCPU thread asks whether there is somebody to heal. No page is looked at here.

use super::Primary;
use crate::divergence::{DivergenceFault, Patient};
use crate::limits::HEAL_MAX;
use crate::message::{Census, Diverged};
use crate::session::{Age, age};
use crate::time::Instant;

impl Primary {
    /// The backup's machine is not ours any more.
    pub fn handle_diverged(&mut self, now: Instant, found: &Diverged) -> Result<(), DivergenceFault> {
        if age(self.term, found.term)? == Age::Stale {
            return Ok(());
        }
        self.hearing.note(now);
        self.health.handle_diverged(found.clone());
        // Who diverges again before an ack has come is no healthier for it.
        self.heal_by = self.heal_by.min(now + HEAL_MAX);
        Ok(())
    }

    /// A piece of what its memory comes to.
    pub fn handle_census(&mut self, now: Instant, census: &Census) -> Result<(), DivergenceFault> {
        if age(self.term, census.term)? == Age::Stale {
            return Ok(());
        }
        self.hearing.note(now);
        self.health.handle_census(census)
    }

    /// A backup that has diverged and said all that is needed to heal it: given once.
    pub fn poll_heal(&mut self) -> Option<Patient> {
        self.health.poll_heal()
    }

    /// The delta that heals the backup is in the log, whole.
    pub fn handle_treated(&mut self) {
        self.health.treated(self.window.end());
    }

    /// Would `poll_heal` give something?
    pub fn wants_heal(&self) -> bool {
        self.health.wants_heal()
    }

    /// Will the backup ack what it gets, as far as it is known? One that has diverged will not, before the delta that
    /// heals it: a window that is full stays full.
    pub fn may_be_acked(&self) -> bool {
        self.health.may_ack()
    }
}
