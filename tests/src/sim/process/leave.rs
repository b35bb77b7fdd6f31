//! How a node leaves in good order: its last outputs leave, its peer learns why, and then it ends. As `Live::leave` in
//! `vmm/src/run/live.rs` and the `leave` of the links do it.

use lockstep_protocol::session::Parting;

use super::{Pair, Part, Process};
use crate::sim::clock::Moment;
use crate::sim::env::Env;
use crate::sim::wires::Word;

/// How long a VM that ended waits for its last outputs to leave.
const OUTPUTS_LEAVE: u64 = 1_000_000_000;
/// So many looks in a time-out.
const NAPS: u32 = 32;

impl Process {
    /// Somebody asked this process to stop.
    pub(crate) fn stop(&mut self, env: &mut Env) {
        env.tell(self.desk.host, || "is asked to stop".into());
        match self.part {
            Part::Live => self.begin_to_leave(env, Parting::Stopped),
            Part::Following(_) => self.say_goodbye(env, Parting::Stopped),
            // A claim is given up, and with it the VM; a process that has not begun has nothing to leave.
            _ => self.end(env, "it was asked to stop"),
        }
    }

    pub(super) fn begin_to_leave(&mut self, env: &mut Env, why: Parting) {
        let until = env.now.later(OUTPUTS_LEAVE);
        self.becomes(env, Part::Leaving { why, until });
        self.wake_vcpu_at(env, env.now.later(1));
    }

    /// Looks whether all outputs have left and all of the log is held.
    pub(super) fn leave(&mut self, env: &mut Env, why: Parting, until: Moment) {
        let holds = self.card.held() + self.drive.held() > 0;
        let waits = holds && env.now < until && !self.backup_is_lost();
        let flush_until = until + env.plan.timing.timeout;
        let flushed = match &self.pair {
            Pair::Primary(end) => end.machine.acked() == end.machine.end() || end.lost.is_some(),
            _ => true,
        };
        if waits || (!flushed && env.now < flush_until) {
            self.flush(env);
            return self.wake_vcpu_at(env, env.now + env.plan.timing.timeout / NAPS);
        }
        self.say_goodbye(env, why);
    }

    fn say_goodbye(&mut self, env: &mut Env, why: Parting) {
        let conn = match &self.pair {
            Pair::Primary(end) => Some(end.conn),
            Pair::Backup(end) => Some(end.conn),
            _ => None,
        };
        if let Some(conn) = conn {
            env.send(conn, self.desk.host, Word::Goodbye(why));
        }
        self.end(env, "it has said goodbye");
    }
}
