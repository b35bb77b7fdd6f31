//! How much happened: a campaign in which nobody ever took over has shown nothing.

use serde::Serialize;

/// Counts of what there was to be judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// How often the VM was switched on.
    pub power_ons: u64,
    /// Outputs that left.
    pub outputs: u64,
    /// Backups that went on in the place of their primary.
    pub takeovers: u64,
    /// Primaries that went on without their backup.
    pub survivals: u64,
    /// Hosts that lived alone and made a backup of a spare.
    pub reprotections: u64,
    /// Hosts that lost a claim and halted.
    pub halts: u64,
    /// Hosts that were started alone.
    pub lone_starts: u64,
    /// Guests of backups that became what their primary's was in the middle of a run.
    pub deltas: u64,
    /// Guests of backups that had diverged and were healed.
    pub healed: u64,
    /// Things that went wrong.
    pub faults: u64,
}

impl Tally {
    /// Adds what happened in another world.
    pub(crate) fn add(&mut self, other: &Self) {
        self.power_ons += other.power_ons;
        self.outputs += other.outputs;
        self.takeovers += other.takeovers;
        self.survivals += other.survivals;
        self.reprotections += other.reprotections;
        self.halts += other.halts;
        self.lone_starts += other.lone_starts;
        self.deltas += other.deltas;
        self.healed += other.healed;
        self.faults += other.faults;
    }
}
