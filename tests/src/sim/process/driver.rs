//! The driver thread of a simulated host: feeds words and time into the pair machine and sends what it polls out. It
//! does what `transport/quic/src/driver` does, and decides nothing.

mod backup;
mod meet;
mod primary;

pub(crate) use backup::{BackupEnd, Lost};
pub(crate) use meet::{Dialing, Listening};
pub(crate) use primary::PrimaryEnd;

use super::{Pair, Part, Process};
use crate::sim::agenda::Actor;
use crate::sim::clock::Moment;
use crate::sim::env::Env;
use crate::sim::wires::Word;

/// A silent peer is given this much longer, in which what waits in our own socket is read: it may be us who slept.
const GRACE: u64 = 2_000_000;

impl Process {
    /// The driver was woken.
    pub(super) fn drive(&mut self, env: &mut Env) {
        self.hear_state(env);
        if let Part::Standby(_) = self.part {
            return self.knock(env);
        }
        match &self.pair {
            Pair::Nobody => {}
            Pair::Dialing(_) => self.dial(env),
            Pair::Listening(_) => self.listen(env),
            Pair::Primary(_) => self.drive_primary(env),
            Pair::Backup(_) => self.drive_backup(env),
        }
    }

    fn drive_primary(&mut self, env: &mut Env) {
        let Pair::Primary(end) = &mut self.pair else {
            return;
        };
        let news = end.drive(env, &self.desk);
        if let Some(acked) = news.acked {
            self.card.shown.publish_acked(acked);
            self.drive.shown.publish_acked(acked);
        }
        if news.acked.is_some() || news.lease {
            let (acked, until) = (end.machine.acked(), end.machine.lease_until());
            // What was held before the log began does not leave before the backup has a record of it (I13).
            if acked > end.start {
                self.card.shown.publish_lease(until);
                self.drive.shown.publish_lease(until);
            }
        }
        let wakes_vcpu = end.lost.is_some()
            || end.machine.wants_heal()
            || (news.acked.is_some()
                && (end.machine.has_ample_room() || matches!(self.part, Part::Leaving { .. })));
        self.wake_driver_at(env, news.next);
        if self.card.may_release() {
            self.ring(env, Actor::Net);
        }
        if self.drive.may_release() {
            self.ring(env, Actor::Disk);
        }
        if wakes_vcpu {
            self.ring(env, Actor::Vcpu);
        }
    }

    fn drive_backup(&mut self, env: &mut Env) {
        let Pair::Backup(end) = &mut self.pair else {
            return;
        };
        let (next, wakes_vcpu) = end.drive(env, &self.desk);
        self.wake_driver_at(env, next);
        if wakes_vcpu {
            self.ring(env, Actor::Vcpu);
        }
    }

    pub(super) fn wake_driver_at(&self, env: &mut Env, at: Moment) {
        env.agenda
            .wake(at.max(env.now), self.desk.host, self.desk.boot, Actor::Driver);
    }

    /// The process leaves without a word: its connection is closed, and the other end may hear of it.
    pub(super) fn hang_up(&mut self, env: &mut Env) {
        let conn = match std::mem::replace(&mut self.pair, Pair::Nobody) {
            Pair::Primary(end) => Some(end.conn),
            Pair::Backup(end) => Some(end.conn),
            Pair::Nobody | Pair::Dialing(_) | Pair::Listening(_) => None,
        };
        if let Some(conn) = conn
            && env.dice.chance(500)
        {
            env.send(conn, self.desk.host, Word::Closed);
        }
    }
}
