//! The vCPUs of a machine: one that runs from exit to exit, or several that run in epochs. The machine asks here for the
//! one that it has; what several are, apart from memory and board, is [`SeveralState`].

use super::Exit;
use super::epoch::{Epoch, Lines};
use crate::chips::{ChipsError, ChipsState};
use crate::kvm;
use crate::state::bounds;
use crate::vcpu::cores::Cores;
use crate::vcpu::{CoreState, Vcpu, VcpuCount, VcpuState, VcpuStateError};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// The vCPUs.
#[derive(Debug)]
pub(super) enum Vcpus {
    /// One, which is recomputed.
    Lone(Vcpu),
    /// Several, which are copied.
    Several(Box<Several>),
}

/// Several vCPUs, and what belongs to all of them.
#[derive(Debug)]
pub(super) struct Several {
    pub(super) cores: Cores<Epoch>,
    /// What drives the lines of KVM's interrupt controllers.
    pub(super) lines: Lines,
    /// What the guest did in the last epoch.
    pub(super) exit: Exit,
    /// What they become before they run: a backup's are set when it goes live.
    awaited: Option<Awaited>,
    /// KVM has taken such a state once.
    is_tried: bool,
}

#[derive(Debug)]
struct Awaited {
    state: SeveralState,
    since: Instant,
}

/// What the vCPUs of a machine are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum VcpusState {
    /// Of one.
    Lone(Box<VcpuState>),
    /// Of several.
    Several(Box<SeveralState>),
}

/// What several vCPUs are, and what they did in the epoch that ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SeveralState {
    chips: ChipsState,
    #[serde(deserialize_with = "bounds::no_longer::<{ VcpuCount::MAX as usize }, _, _, _>")]
    cores: Vec<CoreState>,
    /// The time-stamp counter of all of them, and how fast it counts in kHz.
    counter: u64,
    counter_khz: u32,
    exit: Exit,
}

/// Why the state of several vCPUs could not be read or set.
#[derive(Debug, thiserror::Error)]
pub enum SeveralError {
    /// A chip's.
    #[error(transparent)]
    Chips(#[from] ChipsError),
    /// A vCPU's.
    #[error(transparent)]
    Vcpu(#[from] VcpuStateError),
    /// No KVM.
    #[error(transparent)]
    Kvm(#[from] kvm::KvmError),
    /// It is of another number of vCPUs.
    #[error("The state is of a machine with {theirs} vCPUs, this one has {ours}")]
    Count {
        /// Of the state.
        theirs: usize,
        /// Of this machine.
        ours: usize,
    },
}

impl Vcpus {
    /// Those that were made, in the order of their numbers.
    pub(super) fn new(mut made: Vec<Vcpu>) -> Self {
        match (made.pop(), made.is_empty()) {
            (Some(vcpu), true) => Self::Lone(vcpu),
            (last, _) => {
                made.extend(last);
                Self::Several(Box::new(Several {
                    cores: Cores::new(made),
                    lines: Lines::default(),
                    exit: Exit::default(),
                    awaited: None,
                    is_tried: false,
                }))
            }
        }
    }

    /// They become what `state` says, at once.
    ///
    /// # Errors
    /// When KVM does not take it, or it is of another number of vCPUs.
    pub(super) fn restore(&mut self, vm: &VmFd, state: &VcpusState) -> Result<(), SeveralError> {
        match (self, state) {
            (Self::Lone(vcpu), VcpusState::Lone(state)) => Ok(vcpu.restore(vm, state)?),
            (Self::Several(several), VcpusState::Several(state)) => several.set(vm, state, Duration::ZERO),
            (vcpus, state) => Err(vcpus.misfit(state)),
        }
    }

    /// The same for a backup, which does not run yet: several are set when it does.
    ///
    /// # Errors
    /// As [`Self::restore`].
    pub(super) fn become_like(&mut self, vm: &VmFd, state: &VcpusState) -> Result<(), SeveralError> {
        match (self, state) {
            (Self::Several(several), VcpusState::Several(state)) => several.await_state(vm, state),
            (vcpus, state) => vcpus.restore(vm, state),
        }
    }

    fn misfit(&self, state: &VcpusState) -> SeveralError {
        let ours = match self {
            Self::Lone(_) => 1,
            Self::Several(several) => several.cores.stopped().count(),
        };
        SeveralError::Count {
            theirs: state.count(),
            ours,
        }
    }

    /// The only one.
    pub(super) fn lone(&self) -> &Vcpu {
        match self {
            Self::Lone(vcpu) => vcpu,
            Self::Several(_) => unreachable!("{NEVER_FROM_EXIT_TO_EXIT}"),
        }
    }

    /// The same, to run it.
    pub(super) fn lone_mut(&mut self) -> &mut Vcpu {
        match self {
            Self::Lone(vcpu) => vcpu,
            Self::Several(_) => unreachable!("{NEVER_FROM_EXIT_TO_EXIT}"),
        }
    }
}

const NEVER_FROM_EXIT_TO_EXIT: &str = "several vCPUs never run from exit to exit";

impl Several {
    /// Reads what they are; they stand still.
    pub(super) fn state(&self, vm: &VmFd) -> Result<SeveralState, SeveralError> {
        if let Some(awaited) = &self.awaited {
            return Ok(awaited.state.clone());
        }
        let kvm = kvm::open()?;
        let chips = ChipsState::read(vm)?;
        let (mut counter, mut counter_khz, mut cores) = (0, 0, Vec::new());
        for mut vcpu in self.cores.stopped() {
            (counter, counter_khz) = (vcpu.counter().max(counter), vcpu.counter_khz());
            cores.push(vcpu.core_state(&kvm, vm)?);
        }
        Ok(SeveralState {
            chips,
            cores,
            counter,
            counter_khz,
            exit: self.exit.clone(),
        })
    }

    /// They are to become what `state` says before they run. The first one is set at once: a host whose KVM does not take
    /// it is no backup.
    pub(super) fn await_state(&mut self, vm: &VmFd, state: &SeveralState) -> Result<(), SeveralError> {
        if !self.is_tried {
            self.set(vm, state, Duration::ZERO)?;
        }
        self.exit = state.exit.clone();
        self.awaited = Some(Awaited {
            state: state.clone(),
            since: Instant::now(),
        });
        Ok(())
    }

    /// They are about to run: become what was said last.
    pub(super) fn catch_up(&mut self, vm: &VmFd) -> Result<(), SeveralError> {
        match self.awaited.take() {
            Some(awaited) => self.set(vm, &awaited.state, awaited.since.elapsed()),
            None => Ok(()),
        }
    }

    /// They become what `state` says, `passed` after it was so.
    pub(super) fn set(
        &mut self,
        vm: &VmFd,
        state: &SeveralState,
        passed: Duration,
    ) -> Result<(), SeveralError> {
        let (theirs, ours) = (state.cores.len(), self.cores.stopped().count());
        if theirs != ours {
            return Err(SeveralError::Count { theirs, ours });
        }
        let counter = state.counter_after(passed);
        for mut vcpu in self.cores.stopped() {
            vcpu.set_counter(counter)?;
        }
        state.chips.set(vm, passed)?;
        for (mut vcpu, was) in self.cores.stopped().zip(&state.cores) {
            vcpu.restore_core(vm, was)?;
        }
        self.lines = Lines::default();
        self.is_tried = true;
        Ok(())
    }
}

impl SeveralState {
    /// What the counter would say by now; it never runs backwards.
    fn counter_after(&self, passed: Duration) -> u64 {
        let ticks = passed.as_micros() * u128::from(self.counter_khz) / 1000;
        self.counter
            .saturating_add(u64::try_from(ticks).unwrap_or(u64::MAX))
    }
}

impl VcpusState {
    /// Of how many.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Lone(_) => 1,
            Self::Several(several) => several.cores.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_of_a_machine_that_was_taken_over_goes_on_at_its_own_rate() {
        let state = SeveralState {
            chips: ChipsState::default(),
            cores: Vec::new(),
            counter: 1000,
            counter_khz: 2_500_000,
            exit: Exit::default(),
        };
        assert_eq!(state.counter_after(Duration::ZERO), 1000);
        assert_eq!(state.counter_after(Duration::from_millis(4)), 1000 + 10_000_000);
    }
}
