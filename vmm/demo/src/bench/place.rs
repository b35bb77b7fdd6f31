//! Which of this machine's processors each host of the bench has: two hosts never share any, so the bench's should not.
//!
//! A process inherits the processors of the thread that starts it. Nothing here starts or measures anything.

use anyhow::Context;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

use crate::args::Processors;

/// Numbers of processors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Places {
    /// The primary's and the clients'.
    pub(crate) primary: Vec<usize>,
    /// The backup's.
    pub(crate) backup: Vec<usize>,
}

impl Places {
    /// Shares out the processors that this thread may use, and moves it to the clients' place.
    pub(crate) fn take(wish: Processors) -> anyhow::Result<Self> {
        let ours = sched_getaffinity(None).context("Cannot ask which processors may be used")?;
        let ours = (0..CpuSet::MAX_CPU).filter(|number| ours.is_set(*number));
        let places = Self::share(wish, ours.collect());
        move_to(&places.primary)?;
        Ok(places)
    }

    /// A single processor cannot be shared out.
    fn share(wish: Processors, all: Vec<usize>) -> Self {
        match (wish, all.split_at(all.len() / 2)) {
            (Processors::Apart, (backup @ [_, ..], primary)) => Self {
                primary: primary.to_vec(),
                backup: backup.to_vec(),
            },
            _ => Self {
                primary: all.clone(),
                backup: all,
            },
        }
    }

    /// How many there are altogether.
    pub(crate) fn count(&self) -> usize {
        match self.are_shared() {
            true => self.primary.len(),
            false => self.primary.len() + self.backup.len(),
        }
    }

    /// A sentence about them.
    pub(crate) fn told(&self) -> String {
        let Self { primary, backup } = self;
        match self.are_shared() {
            true => format!("Everybody shared the processors {primary:?}."),
            false => format!(
                "The primary and the clients had the processors {primary:?}, alone and protected; the backup had \
                 {backup:?}."
            ),
        }
    }

    fn are_shared(&self) -> bool {
        self.primary == self.backup
    }

    /// Lets `start` start a process in the backup's place.
    pub(crate) fn at_backup<R>(&self, start: impl FnOnce() -> anyhow::Result<R>) -> anyhow::Result<R> {
        move_to(&self.backup)?;
        let started = start();
        move_to(&self.primary)?;
        started
    }
}

fn move_to(numbers: &[usize]) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    numbers.iter().for_each(|number| set.set(*number));
    sched_setaffinity(None, &set).context("Cannot choose the processors to run on")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_apart_have_no_processor_in_common() {
        let places = Places::share(Processors::Apart, vec![0, 2, 3, 5, 6]);
        assert_eq!(places.primary, [3, 5, 6]);
        assert_eq!(places.backup, [0, 2]);
        assert!(!places.are_shared());
    }

    #[test]
    fn a_machine_with_one_processor_cannot_keep_them_apart() {
        let places = Places::share(Processors::Apart, vec![4]);
        assert!(places.are_shared());
        assert_eq!(places.backup, [4]);
    }

    #[test]
    fn hosts_that_share_have_all_of_them() {
        let places = Places::share(Processors::Shared, vec![0, 1]);
        assert_eq!(places.primary, [0, 1]);
        assert_eq!(places.backup, [0, 1]);
    }
}
