//! What can happen to the modelled pair, one thing at a time: which steps there are, and when each can be made.
//!
//! The search in `model` calls [`Pair::after`]. What comes of a step is a level below: `guest` is what the VM does, `words`
//! what the hosts say to each other, `takeover` what becomes of a host that hears nothing any more.

mod guest;
mod takeover;
mod words;

use self::takeover::Luck;
use super::pair::{A, B, Pair, Role};

/// One thing that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Time passes.
    Tick,
    /// A request enters on the host that lives.
    Request(usize),
    /// The guest runs on to the exit in which it calls for its reply.
    Call(usize),
    /// The device process looks at its gate.
    Release(usize),
    /// The driver sends what is to be sent, and looks at the time.
    Drive(usize),
    /// The oldest piece of the log arrives.
    HearLog,
    /// The oldest heartbeat arrives.
    HearBeat,
    /// The oldest ack arrives.
    HearAck,
    /// The oldest echo arrives.
    HearEcho,
    /// The backup's VM takes one record, or finds that its log is at an end.
    Replay,
    /// What a machine wants done is done, and the arbiter answers if it is asked.
    Settle(usize),
    /// The same, but the arbiter is not reached.
    SettleUnheard(usize),
    /// The same, but the arbiter's answer is lost.
    SettleUnanswered(usize),
    /// The host loses power.
    Crash(usize),
    /// The host stops.
    Pause(usize),
    /// The host goes on.
    Resume(usize),
    /// The host sees its connection break.
    Break(usize),
    /// Nothing arrives at the host any more.
    CutTo(usize),
}

impl Step {
    /// All of them.
    pub(super) const ALL: [Self; 30] = [
        Self::Tick,
        Self::Request(A),
        Self::Request(B),
        Self::Call(A),
        Self::Call(B),
        Self::Release(A),
        Self::Release(B),
        Self::Drive(A),
        Self::Drive(B),
        Self::HearLog,
        Self::HearBeat,
        Self::HearAck,
        Self::HearEcho,
        Self::Replay,
        Self::Settle(A),
        Self::Settle(B),
        Self::SettleUnheard(A),
        Self::SettleUnheard(B),
        Self::SettleUnanswered(A),
        Self::SettleUnanswered(B),
        Self::Crash(A),
        Self::Crash(B),
        Self::Pause(A),
        Self::Pause(B),
        Self::Resume(A),
        Self::Resume(B),
        Self::Break(A),
        Self::Break(B),
        Self::CutTo(A),
        Self::CutTo(B),
    ];
}

impl Pair {
    /// The state after a step, or nothing if it cannot be made or changes nothing.
    pub(super) fn after(&self, step: Step) -> Option<Self> {
        if !self.may(step) {
            return None;
        }
        let mut after = self.clone();
        after.make(step).then_some(after)
    }

    /// A first look, before anything is copied.
    fn may(&self, step: Step) -> bool {
        let runs = |host: usize| self.hosts[host].runs();
        match step {
            Step::Tick => self.left.ticks > 0,
            Step::Request(host) => self.left.requests > 0 && runs(host) && !self.hosts[host].vm.called,
            Step::Call(host) | Step::Release(host) | Step::Drive(host) | Step::Settle(host) => runs(host),
            Step::SettleUnheard(host) | Step::SettleUnanswered(host) => {
                self.left.lost_claims > 0 && runs(host)
            }
            Step::HearLog => !self.wires.log.is_empty() && !self.wires.cut_to_backup && runs(B),
            Step::HearBeat => !self.wires.beats.is_empty() && !self.wires.cut_to_backup && runs(B),
            Step::HearAck => !self.wires.acks.is_empty() && !self.wires.cut_to_primary && runs(A),
            Step::HearEcho => !self.wires.echoes.is_empty() && !self.wires.cut_to_primary && runs(A),
            Step::Replay => runs(B),
            Step::Crash(host) => self.left.crashes > 0 && runs(host),
            Step::Pause(host) => self.left.pauses > 0 && runs(host),
            Step::Resume(host) => self.hosts[host].paused,
            Step::Break(host) => self.left.breaks > 0 && runs(host),
            Step::CutTo(host) => {
                let cut = [self.wires.cut_to_primary, self.wires.cut_to_backup];
                self.left.cuts > 0 && !cut[host]
            }
        }
    }

    /// Makes the step; false if it changes nothing.
    fn make(&mut self, step: Step) -> bool {
        match step {
            Step::Tick => {
                self.left.ticks -= 1;
                self.tick();
                (A..=B).for_each(|host| {
                    self.drive(host);
                });
                true
            }
            Step::Request(host) => self.request(host),
            Step::Call(host) => self.call(host),
            Step::Release(host) => self.release(host),
            Step::Drive(host) => self.drive(host),
            Step::HearLog => self.hear_log(),
            Step::HearBeat => self.hear_beat(),
            Step::HearAck => self.hear_ack(),
            Step::HearEcho => self.hear_echo(),
            Step::Replay => self.replay(),
            Step::Settle(host) => self.settle(host, Luck::Answered),
            Step::SettleUnheard(host) => self.settle(host, Luck::Unheard),
            Step::SettleUnanswered(host) => self.settle(host, Luck::Unanswered),
            Step::Crash(host) => {
                self.left.crashes -= 1;
                self.hosts[host].role = Role::Dead;
                true
            }
            Step::Pause(host) => {
                self.left.pauses -= 1;
                self.hosts[host].paused = true;
                true
            }
            Step::Resume(host) => {
                self.hosts[host].paused = false;
                true
            }
            Step::Break(host) => {
                self.left.breaks -= 1;
                self.suspect(host)
            }
            Step::CutTo(host) => {
                self.left.cuts -= 1;
                match host {
                    A => self.wires.cut_to_primary = true,
                    _ => self.wires.cut_to_backup = true,
                }
                true
            }
        }
    }
}
