//! What goes wrong in a simulated world, one thing at a time, drawn from the kinds that its plan allows.

use super::agenda::{Actor, Event};
use super::env::{ARBITER, PAIRED};
use super::plan::Kind;
use super::process::Pair;
use super::world::World;

impl World {
    /// One thing goes wrong, and when the next will is noted.
    pub(super) fn fault(&mut self) {
        if self.calm.is_some() {
            return;
        }
        let env = &mut self.env;
        let next = env.now.later(env.dice.scaled(env.plan.gap));
        env.agenda.note(next, Event::Fault);
        let kind = self.env.plan.kinds[self.env.dice.below(self.env.plan.kinds.len() as u64) as usize];
        self.go_wrong(kind);
    }

    fn go_wrong(&mut self, kind: Kind) {
        let env = &mut self.env;
        let hosts = env.plan.hosts();
        let host = env.dice.below(hosts as u64) as usize;
        let until = env.now.later(env.dice.scaled(env.plan.fault));
        env.oracle.tally.faults += 1;
        env.story
            .tell(env.now, &"fault", || format!("{kind:?} at host {host}"));
        match kind {
            Kind::Cut if hosts == PAIRED => self.cut(host, PAIRED - 1 - host),
            Kind::Cut => {
                let step = 1 + env.dice.below(hosts as u64 - 1) as usize;
                self.cut(host, (host + step) % hosts);
            }
            Kind::CutArbiter => self.cut(host, ARBITER),
            Kind::CutOutside => self.outside.cut(host, until),
            Kind::Pause => self.hosts[host].pause(until),
            Kind::Stall => {
                let actor = env.dice.pick(&Actor::ALL);
                self.hosts[host].stall(actor, until);
            }
            Kind::Crash => self.crash(host),
            Kind::Break => self.break_connection(host),
            Kind::SlowReplay => env.slow_replay_until = until,
            Kind::SlowNetwork => env.slow_until = until,
            Kind::ArbiterRestart => self.arbiter.restart(&mut env.dice, until),
            Kind::ArbiterMishap => self.arbiter.set_mishap(&mut env.dice),
            Kind::StaleWord => self.say_stale(host),
            Kind::Stop => {
                if let Some(process) = &mut self.hosts[host].process {
                    process.stop(env);
                }
            }
            Kind::Meddle => self.meddle(host),
            Kind::Restart => self.restart(host),
        }
    }

    /// Cuts a link in one direction or both; a cut may be too short to be noticed, or outlive everything.
    fn cut(&mut self, one: usize, other: usize) {
        let env = &mut self.env;
        let until = env.now.later(env.dice.scaled(env.plan.fault));
        let ways = env.dice.below(3);
        if ways != 1 {
            env.wires.cut(one, other, until);
        }
        if ways != 0 {
            env.wires.cut(other, one, until);
        }
        env.agenda.note(until, Event::Heal);
    }

    /// A host loses power, and comes back some time after its last words have left.
    pub(super) fn crash(&mut self, host: usize) {
        let env = &mut self.env;
        let rest = env.plan.slowest_departure() * 2 + env.dice.scaled(env.plan.fault);
        let ready_at = env.now.later(rest);
        self.hosts[host].crash(env, ready_at);
    }

    /// One end of a session sees its connection break.
    fn break_connection(&mut self, host: usize) {
        let env = &mut self.env;
        if let Some(process) = &mut self.hosts[host].process {
            let desk = process.desk;
            let why = lockstep_protocol::session::PeerLost::Disconnected("it broke".into());
            match &mut process.pair {
                Pair::Primary(end) if end.lost.is_none() => end.lose(env, &desk, &why),
                Pair::Backup(end) => end.lose(env, &desk, &why),
                _ => {}
            }
            env.ring(host, desk.boot, Actor::Vcpu);
        }
    }

    /// A word of an earlier term arrives in the session of today.
    fn say_stale(&mut self, host: usize) {
        let env = &mut self.env;
        let Some(process) = &mut self.hosts[host].process else {
            return;
        };
        let boot = process.desk.boot;
        match &mut process.pair {
            Pair::Primary(end) if end.lost.is_none() => {
                if let Some(word) = env.old_words.to_primary(&mut env.dice, end.machine.term()) {
                    end.hear_stale(word);
                }
            }
            Pair::Backup(end) => {
                if let Some(term) = end.term()
                    && let Some(word) = env.old_words.to_backup(&mut env.dice, term)
                {
                    end.hear_stale(word);
                }
            }
            _ => {}
        }
        env.ring(host, boot, Actor::Driver);
    }

    /// From here on nothing new goes wrong, and what is broken is mended.
    pub(super) fn calm_down(&mut self) {
        let env = &mut self.env;
        env.story
            .tell(env.now, &"world", || "nothing goes wrong any more".into());
        self.calm = Some(env.now);
        env.plan.losses = 0;
        env.slow_until = env.now;
        env.slow_replay_until = env.now;
        env.wires.heal_all();
        env.agenda.note(env.now, Event::Heal);
        env.agenda.note(env.now + env.plan.recovery(), Event::Judgement);
        self.arbiter.heal();
        self.outside.heal();
        for (index, host) in self.hosts.iter_mut().enumerate() {
            host.resume();
            if let Some(process) = &host.process {
                for actor in Actor::ALL {
                    env.ring(index, process.desk.boot, actor);
                }
            }
        }
    }
}
