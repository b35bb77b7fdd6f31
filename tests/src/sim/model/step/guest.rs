//! The modelled VM: a request enters, the reply to it is called for and leaves, and the backup executes the same. Whatever
//! leaves is judged here; `step` calls all of it.

use lockstep_protocol::ids::{LogOffset, Term};
use lockstep_protocol::record::{Input, Record};
use lockstep_protocol::replay::Admitted;
use lockstep_protocol::window;

use super::super::pair::{A, B, Pair, Reply, Role};

impl Pair {
    /// A request enters in the open window and closes it; the guest runs to the exit in which it calls for the reply.
    pub(super) fn request(&mut self, host: usize) -> bool {
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
    pub(super) fn call(&mut self, host: usize) -> bool {
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

    /// A held reply leaves, if its gate lets it.
    pub(super) fn release(&mut self, host: usize) -> bool {
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

    /// One record enters, or the log has come to its end.
    pub(super) fn replay(&mut self) -> bool {
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
}
