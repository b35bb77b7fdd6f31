//! The vCPU of a host that talks to the outside: what came in becomes records and enters, what the guest calls for is
//! ordered. As `vmm/src/ft/record.rs`, `batch.rs` and `vmm/src/run/live.rs` do it.

use bytes::Bytes;
use lockstep_protocol::ids::{GuestTime, LogOffset, QueueIndex};
use lockstep_protocol::record::Input;
use lockstep_protocol::session::{Parting, PeerLost};
use lockstep_protocol::takeover::Claiming;
use lockstep_protocol::window;

use super::settle::{Claimant, Settling};
use super::{Pair, Part, Process};
use crate::sim::agenda::Actor;
use crate::sim::device::{Made, Output};
use crate::sim::env::Env;
use crate::sim::guest::{DISK, Exit, Kick, NET, TX_QUEUE};

/// A guest that makes exits without idling sees its clock move at least this often.
const TICK_EVERY: u64 = 1_000_000;
/// So many log bytes are sent without waiting for a flush.
const SEND_AT: usize = 32 << 10;

/// What is about to enter in one window.
#[derive(Debug, Default)]
struct Batch {
    inputs: Vec<Input<Bytes>>,
    frames: usize,
    completions: usize,
    wakes: bool,
}

impl Process {
    /// One exit and its window, or one more look at a window that is open.
    pub(super) fn live(&mut self, env: &mut Env) {
        if self.backup_is_lost() {
            return self.suspect_backup(env);
        }
        if !self.powered {
            return self.power_on(env);
        }
        // What the guest called for in an open window is ordered before anything is copied.
        let is_served = |exit: &Exit| exit.kick.is_none() && !exit.end;
        if !self.stalled && self.window.as_ref().is_none_or(is_served) && self.stands_still(env) {
            return;
        }
        let exit = match self.window.take() {
            Some(exit) => exit,
            None if self.stalled => return self.end_stall(env),
            None if env.dice.chance(env.plan.stalls) => return self.begin_stall(env),
            None => {
                self.sleeps_until = None;
                self.guest.step()
            }
        };
        self.serve(env, exit);
    }

    fn power_on(&mut self, env: &mut Env) {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&env.dice.any().to_le_bytes());
        self.time = (GuestTime::ZERO, self.desk.now(env));
        let inputs = [
            Input::PowerOn { seed },
            Input::Tick {
                time: GuestTime::ZERO,
            },
        ];
        env.tell(self.desk.host, || "powers the VM on".into());
        env.oracle.tally.power_ons += 1;
        if let Err(sentence) = env.oracle.history.switched_on(env.disk.newest()) {
            env.accuse("I5", self.desk.host, &sentence);
        }
        self.powered = true;
        self.enter(env, &inputs);
        self.run_on(env);
    }

    fn serve(&mut self, env: &mut Env, mut exit: Exit) {
        let batch = self.gather();
        let now = self.guest_now(env);
        let mark = exit.kick.is_some() || exit.end;
        let until = exit
            .idle
            .map(|limit| limit.map(|limit| GuestTime::new(now.get() + limit)));
        let until = until.map(|until| self.sleeps_until.or(until));
        let tick = batch.wakes || self.is_due(now, until);
        if !tick && !mark {
            return self.wait(env, exit, until);
        }
        if !self.has_room() {
            // Full means push back: the vCPU stands in its window until the backup holds more of the log. What fills
            // it may be here, unsent.
            self.flush(env);
            self.window = Some(exit);
            return self.give_up_patient(env);
        }
        self.consume(&batch);
        let inputs: Vec<_> = batch.inputs.iter().map(Input::borrowed).collect();
        let has_digest = env.dice.chance(env.plan.digests) || mark;
        let digest = has_digest.then(|| self.guest.fingerprint().to_le_bytes());
        let digest = digest.as_ref().map(|bytes| &bytes[..]);
        let tick = tick.then_some(now);
        let inputs: Vec<_> = window::entries(mark, digest, tick, inputs.into_iter()).collect();
        let start = self.enter(env, &inputs);
        if mark || exit.idle.is_none() {
            self.flush(env);
        }
        self.order(env, exit.kick.take(), window::needs(start, has_digest));
        match exit.end {
            true => self.begin_to_leave(env, Parting::PowerOff),
            false => self.run_on(env),
        }
    }

    /// Nothing enters in this window now: an idle guest sleeps in it, any other runs on.
    fn wait(&mut self, env: &mut Env, exit: Exit, until: Option<Option<GuestTime>>) {
        let Some(until) = until.filter(|_| !self.has_patient()) else {
            return self.run_on(env);
        };
        self.flush(env);
        self.sleeps_until = until;
        self.window = Some(exit);
        if let Some(until) = until {
            let (shown, since) = self.time;
            let wait = std::time::Duration::from_nanos(until.get().saturating_sub(shown.get()));
            let at = self.desk.clock.moment(since + wait);
            self.wake_vcpu_at(env, at);
        }
    }

    fn is_due(&self, now: GuestTime, until: Option<Option<GuestTime>>) -> bool {
        match until {
            Some(Some(until)) => now >= until,
            Some(None) => false,
            None => now.get().saturating_sub(self.guest.time().get()) >= TICK_EVERY,
        }
    }

    /// What is staged and could enter now; it stays where it is until it does.
    fn gather(&self) -> Batch {
        let mut batch = Batch::default();
        for (head, bytes) in &self.drive.staged {
            batch.inputs.push(Input::Completion {
                device: DISK,
                queue: QueueIndex::ZERO,
                head: *head,
                bytes: bytes.clone(),
            });
        }
        batch.completions = batch.inputs.len();
        batch.frames = self.card.staged.len().min(self.guest.receive_room());
        for bytes in self.card.staged.iter().take(batch.frames) {
            batch.inputs.push(Input::Frame {
                device: NET,
                bytes: bytes.clone(),
            });
        }
        batch.wakes = !batch.inputs.is_empty() || usize::from(self.card.returned) >= TX_QUEUE / 2;
        if self.card.returned > 0 {
            batch.inputs.push(Input::Returned {
                device: NET,
                queue: QueueIndex::new(1),
                count: self.card.returned,
            });
        }
        batch
    }

    fn consume(&mut self, batch: &Batch) {
        self.drive.staged.drain(..batch.completions);
        self.card.staged.drain(..batch.frames);
        self.card.returned = 0;
    }

    fn has_room(&self) -> bool {
        match &self.pair {
            Pair::Primary(end) => end.machine.has_room(),
            _ => true,
        }
    }

    /// Logs and injects. Gives the log offset before the first input.
    pub(super) fn enter(&mut self, env: &mut Env, inputs: &[Input<&[u8]>]) -> LogOffset {
        let position = self.guest.position();
        let start = match &mut self.pair {
            Pair::Primary(end) => {
                let start = end.machine.append_window(position, true, inputs);
                let pause = end.machine.slowdown();
                self.busy_until = env.now + pause;
                if end.machine.unsent_bytes() >= SEND_AT {
                    self.flush(env);
                }
                start
            }
            _ => {
                let start = self.alone_end;
                self.alone_end = start.advance(inputs.len() as u64);
                start
            }
        };
        for input in inputs {
            if let Err(misfit) = self.guest.enter(input) {
                env.accuse("I2", self.desk.host, &misfit);
            }
        }
        start
    }

    /// The guest computes what nobody can recompute, and is stopped in the middle of it: the first pieces of a delta.
    fn begin_stall(&mut self, env: &mut Env) {
        self.guest.wander(env.dice.any());
        self.stalled = true;
        if let Pair::Primary(end) = &mut self.pair {
            let position = self.guest.position();
            for piece in 0..env.dice.below(4) as u8 {
                end.machine
                    .append(position, false, Input::DeltaPages { bytes: &[piece] });
            }
            self.flush(env);
        }
        self.busy_until = env.now.later(env.dice.between(env.plan.exit));
        self.wake_vcpu_at(env, self.busy_until);
    }

    /// The end of the delta, and what enters behind it.
    fn end_stall(&mut self, env: &mut Env) {
        if !self.has_room() {
            self.flush(env);
            return self.give_up_patient(env);
        }
        self.stalled = false;
        if let Pair::Primary(end) = &mut self.pair {
            let run = env.runs.keep(&self.guest);
            let position = self.guest.position();
            end.machine
                .append(position, false, Input::DeltaEnd { bytes: &run });
        }
        let batch = self.gather();
        self.consume(&batch);
        let now = self.guest_now(env);
        let inputs = batch.inputs.iter().map(Input::borrowed);
        let inputs: Vec<_> = window::entries(false, None, Some(now), inputs).collect();
        self.enter(env, &inputs);
        self.flush(env);
        self.run_on(env);
    }

    pub(super) fn flush(&mut self, env: &mut Env) {
        if let Pair::Primary(end) = &mut self.pair {
            end.rung = true;
            self.ring(env, Actor::Driver);
        }
    }

    fn order(&mut self, env: &mut Env, kick: Option<Kick>, needs: LogOffset) {
        let position = self.guest.position();
        let made = |output| Made {
            output,
            needs,
            position,
        };
        match kick {
            Some(Kick::Net(replies)) => {
                let orders = replies.into_iter().map(|reply| made(Output::Reply(reply)));
                self.card.orders.extend(orders);
                self.ring(env, Actor::Net);
            }
            Some(Kick::Disk(job)) => {
                self.drive.orders.push_back(made(Output::Write(job)));
                self.ring(env, Actor::Disk);
            }
            None => {}
        }
    }

    /// The window is closed: the guest runs to its next exit.
    pub(super) fn run_on(&mut self, env: &mut Env) {
        self.window = None;
        self.heal(env);
        self.busy_until = self
            .busy_until
            .max(env.now)
            .later(env.dice.between(env.plan.exit));
        self.wake_vcpu_at(env, self.busy_until);
    }

    /// Is there a backup that has diverged and can be healed?
    fn has_patient(&self) -> bool {
        matches!(&self.pair, Pair::Primary(end) if end.machine.wants_heal())
    }

    fn heal(&mut self, env: &mut Env) {
        let Pair::Primary(end) = &mut self.pair else {
            return;
        };
        if end.machine.poll_heal().is_none() {
            return;
        }
        let run = env.runs.keep(&self.guest);
        let delta = [
            Input::Heal,
            Input::DeltaPages { bytes: &[0][..] },
            Input::DeltaEnd { bytes: &run[..] },
        ];
        end.machine.append_window(self.guest.position(), false, &delta);
        end.machine.handle_treated();
        env.tell(self.desk.host, || "heals its backup".into());
        self.flush(env);
    }

    /// The log is full. A backup that has diverged acks nothing, so it would stay full for ever.
    fn give_up_patient(&mut self, env: &mut Env) {
        if let Pair::Primary(end) = &mut self.pair
            && !end.machine.may_be_acked()
            && end.lost.is_none()
        {
            let why = PeerLost::Disconnected("it could not be healed".into());
            end.lose(env, &self.desk, &why);
            self.ring(env, Actor::Vcpu);
        }
    }

    /// Is there nobody to log for any more?
    pub(super) fn backup_is_lost(&self) -> bool {
        matches!(&self.pair, Pair::Primary(end) if end.lost.is_some())
    }

    /// The backup is lost: claims, with the window still open and the gates as they are.
    fn suspect_backup(&mut self, env: &mut Env) {
        let Pair::Primary(end) = std::mem::replace(&mut self.pair, Pair::Nobody) else {
            return;
        };
        self.alone_end = end.machine.end();
        let claiming: Claiming = end.machine.suspect(self.desk.now(env));
        let settling = Settling {
            claimant: Claimant::Primary(claiming),
        };
        self.becomes(env, Part::Settling(Box::new(settling)));
        self.settle(env);
    }
}
