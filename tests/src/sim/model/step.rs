//! What can happen to the modelled pair, one thing at a time, and what must not come of it.

use lockstep_protocol::ids::{LogOffset, Term};
use lockstep_protocol::outbox::Gate;
use lockstep_protocol::record::{Input, Record};
use lockstep_protocol::replay::Admitted;
use lockstep_protocol::takeover::Deed;
use lockstep_protocol::window;

use super::pair::{A, B, Pair, Reply, Role, holder};

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

/// What becomes of a question to the arbiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Luck {
    Answered,
    Unheard,
    Unanswered,
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

    /// A request enters in the open window and closes it; the guest runs to the exit in which it calls for the reply.
    fn request(&mut self, host: usize) -> bool {
        let live = &mut self.hosts[host];
        let number = live.vm.known + 1;
        let typed = [number];
        let typed = Input::Console { bytes: &typed[..] };
        let inputs: Vec<_> = window::entries(false, None, None, std::iter::once(typed)).collect();
        match &mut live.role {
            Role::Primary(primary) => {
                primary.append_window(live.vm.position, true, &inputs);
            }
            Role::Alone => {}
            _ => return false,
        }
        self.left.requests -= 1;
        live.vm.known = number;
        live.vm.asked = true;
        live.vm.step();
        self.drive(host);
        true
    }

    /// The window of that exit: the mark is logged, and the reply is ordered.
    fn call(&mut self, host: usize) -> bool {
        let live = &mut self.hosts[host];
        if !live.vm.called {
            return false;
        }
        let inputs: Vec<_> = window::entries(true, None, None, std::iter::empty()).collect();
        let start = match &mut live.role {
            Role::Primary(primary) => primary.append_window(live.vm.position, true, &inputs),
            Role::Alone => LogOffset::ZERO,
            _ => return false,
        };
        let reply = Reply {
            number: live.vm.known,
            position: live.vm.position,
            needs: window::needs(start, false),
        };
        let held = live.held.hold(reply.needs, 1, reply);
        held.expect("there are fewer requests than an outbox holds");
        live.vm.step();
        self.drive(host);
        true
    }

    fn release(&mut self, host: usize) -> bool {
        let (now, live) = (self.now, &mut self.hosts[host]);
        let Some(reply) = live.held.poll_release(&live.gate, now) else {
            return false;
        };
        let term = live.term;
        self.judge(host, term, reply);
        true
    }

    /// What the outside sees must be the work of one server, and the terms must not go back.
    fn judge(&mut self, host: usize, term: Term, reply: Reply) {
        match self.seen.spoken {
            Some((newest, _)) if newest > term => {
                self.accuse("A reply leaves in an earlier term than the last (I6)")
            }
            Some((newest, other)) if newest == term && other != host => {
                self.accuse("Two hosts speak in one term (I10)");
            }
            _ => self.seen.spoken = Some((term, host)),
        }
        self.seen.newest = self.seen.newest.max(reply.number);
        self.seen.furthest = self.seen.furthest.max(reply.position);
        let other = &self.hosts[1 - host];
        let held = match &other.role {
            Role::Backup(backup, _) => Some(backup.received()),
            Role::TakingOver(takeover, ..) => Some(takeover.end()),
            _ => None,
        };
        let acked = self.hosts[host].gate.acked;
        if term == Term::new(1)
            && host == A
            && held.is_some_and(|held| acked > held && acked != LogOffset::MAX)
        {
            self.accuse("A gate says that more is acked than the backup holds (I1)");
        }
    }

    /// What a driver does when it is woken. One that is late is the same as words that are late, so it is never late
    /// but on a host that sleeps.
    fn drive(&mut self, host: usize) -> bool {
        match host {
            _ if !self.hosts[host].runs() => false,
            A => self.drive_primary(),
            _ => self.drive_backup(),
        }
    }

    fn drive_primary(&mut self) -> bool {
        let now = self.now;
        let host = &mut self.hosts[A];
        let Role::Primary(primary) = &mut host.role else {
            return false;
        };
        let log = primary.poll_transmit();
        let beat = primary.poll_heartbeat(now);
        let lost = primary.handle_timeout(now).is_some();
        let any = log.is_some() || beat.is_some();
        self.wires.log.extend(log);
        self.wires.beats.extend(beat);
        if lost { self.suspect(A) } else { any }
    }

    fn drive_backup(&mut self) -> bool {
        let now = self.now;
        let host = &mut self.hosts[B];
        let Role::Backup(backup, _) = &mut host.role else {
            return false;
        };
        let ack = backup.poll_ack();
        let echo = backup.poll_heartbeat(now);
        let lost = backup.handle_timeout(now).is_some();
        let any = ack.is_some() || echo.is_some();
        self.wires.acks.extend(ack);
        self.wires.echoes.extend(echo);
        if lost { self.suspect(B) } else { any }
    }

    fn suspect(&mut self, host: usize) -> bool {
        let now = self.now;
        let host = &mut self.hosts[host];
        host.role = match std::mem::replace(&mut host.role, Role::Dead) {
            Role::Primary(primary) => Role::Claiming(primary.suspect(now)),
            Role::Backup(backup, follower) => {
                Role::TakingOver(Box::new(backup.suspect(now)), follower, false)
            }
            other => {
                host.role = other;
                return false;
            }
        };
        true
    }

    fn hear_log(&mut self) -> bool {
        let Some(bytes) = self.wires.log.pop_front() else {
            return false;
        };
        if let Role::Backup(backup, _) = &mut self.hosts[B].role
            && let Err(fault) = backup.handle_log_bytes(self.now, bytes)
        {
            self.accuse(fault.to_string());
        }
        self.drive(B);
        true
    }

    fn hear_beat(&mut self) -> bool {
        let Some(beat) = self.wires.beats.pop_front() else {
            return false;
        };
        if let Role::Backup(backup, _) = &mut self.hosts[B].role
            && let Err(fault) = backup.handle_heartbeat(self.now, &beat)
        {
            self.accuse(fault.to_string());
        }
        self.drive(B);
        true
    }

    fn hear_ack(&mut self) -> bool {
        let Some(ack) = self.wires.acks.pop_front() else {
            return false;
        };
        let host = &mut self.hosts[A];
        if let Role::Primary(primary) = &mut host.role {
            match primary.handle_ack(self.now, &ack) {
                Ok(()) => host.gate = primary.gate(),
                Err(fault) => self.accuse(fault.to_string()),
            }
        }
        true
    }

    fn hear_echo(&mut self) -> bool {
        let Some(echo) = self.wires.echoes.pop_front() else {
            return false;
        };
        let host = &mut self.hosts[A];
        if let Role::Primary(primary) = &mut host.role {
            match primary.handle_heartbeat(self.now, &echo) {
                Ok(()) => host.gate = primary.gate(),
                Err(fault) => self.accuse(fault.to_string()),
            }
        }
        true
    }

    /// One record enters, or the log has come to its end.
    fn replay(&mut self) -> bool {
        let record = match &mut self.hosts[B].role {
            Role::Backup(backup, follower) => follower.poll_kept().or_else(|| backup.poll_deliver()),
            Role::TakingOver(takeover, follower, _) => {
                follower.poll_kept().or_else(|| takeover.poll_deliver())
            }
            _ => None,
        };
        match (record, &mut self.hosts[B].role) {
            (Some(record), _) => self.enter(record),
            (None, Role::TakingOver(takeover, _, replayed @ false)) => {
                takeover.handle_replayed();
                *replayed = true;
                true
            }
            (None, _) => false,
        }
    }

    fn enter(&mut self, record: Record) -> bool {
        let host = &mut self.hosts[B];
        let (Role::Backup(_, follower) | Role::TakingOver(_, follower, _)) = &mut host.role else {
            return false;
        };
        let admitted = follower.handle_record(record, host.vm.position, host.vm.called);
        let record = match admitted {
            Ok(Admitted::Enters(record)) => record,
            Ok(Admitted::Later) => {
                host.vm.step();
                return true;
            }
            Ok(Admitted::Kept | Admitted::Delta { .. } | Admitted::Dropped) => {
                self.accuse("A delta comes that nobody made");
                return true;
            }
            Err(misplaced) => {
                self.accuse(format!("{misplaced} (I3)"));
                return true;
            }
        };
        if let Input::Console { bytes } = &record.input {
            host.vm.known = bytes[0];
            host.vm.asked = true;
        }
        host.vm.applied = host.vm.applied.next();
        if let Role::Backup(backup, _) = &mut host.role {
            backup.handle_executed(host.vm.applied, host.vm.position);
        }
        true
    }

    fn settle(&mut self, host: usize, luck: Luck) -> bool {
        let now = self.now;
        let deed = match &mut self.hosts[host].role {
            Role::Claiming(claiming) => claiming.poll_deed(now),
            Role::TakingOver(takeover, ..) => takeover.poll_deed(now),
            _ => None,
        };
        match deed {
            Some(Deed::Claim { expected }) => self.claim(host, expected, luck),
            Some(Deed::Promote { term }) => self.promote(host, term),
            Some(Deed::Halt { .. }) => {
                let host = &mut self.hosts[host];
                host.gate = Gate::SHUT;
                host.held.discard();
                host.role = Role::Halted;
            }
            None => return false,
        }
        true
    }

    fn claim(&mut self, host: usize, expected: Term, luck: Luck) {
        let verdict = match luck {
            Luck::Unheard => None,
            Luck::Answered | Luck::Unanswered => self.register.claim(expected, &holder(host)),
        };
        let verdict = verdict.filter(|_| luck == Luck::Answered);
        self.left.lost_claims -= u8::from(luck != Luck::Answered);
        let now = self.now;
        let outcome = match (&mut self.hosts[host].role, verdict) {
            (Role::Claiming(claiming), Some(verdict)) => claiming.handle_verdict(verdict),
            (Role::TakingOver(takeover, ..), Some(verdict)) => takeover.handle_verdict(verdict),
            (Role::Claiming(claiming), None) => {
                claiming.handle_claim_failed(now);
                Ok(())
            }
            (Role::TakingOver(takeover, ..), None) => {
                takeover.handle_claim_failed(now);
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(fault) = outcome {
            self.accuse(fault.to_string());
        }
    }

    /// A host begins to live alone: it has all that the outside has seen, and nobody else may speak.
    fn promote(&mut self, index: usize, term: Term) {
        let other = &self.hosts[1 - index];
        let dead = matches!(other.role, Role::Dead);
        if !dead && other.gate.lets(LogOffset::ZERO, self.now) {
            self.accuse("A host begins to live alone while the other may still speak (I7)");
        }
        let host = &mut self.hosts[index];
        host.term = term;
        host.gate = Gate::ALONE;
        host.role = Role::Alone;
        let (known, position) = (host.vm.known, host.vm.position);
        if known < self.seen.newest || position < self.seen.furthest {
            self.accuse("The survivor has not executed what the outside has seen (I4)");
        }
        // What entered in its last window is executed now; before that the guest of the lost primary did.
        let vm = &mut self.hosts[index].vm;
        if vm.asked {
            vm.step();
        }
    }
}
