//! The operator of a simulated pair: starts nodes that are down, in whatever roles make sense to a person, and now and
//! then at a moment that does not.

use super::agenda::Event;
use super::env::PAIRED;
use super::host::{Host, node_of};
use super::process::{Part, Process, StartAs};
use super::world::World;

impl World {
    /// The operator looks at his hosts, and says when he will look again.
    pub(super) fn operate(&mut self) {
        let env = &mut self.env;
        let again = env.now + env.plan.timing.timeout;
        let again = again.later(env.dice.between(env.plan.fault));
        env.agenda.note(again, Event::Operator);
        self.give_up_waiting();
        if self.hosts.iter().all(|host| host.has_no_vm(&self.env)) {
            self.start_pair();
        } else if self.env.plan.spares && self.start_spares() {
            // A VM that lives alone is protected again without a stop.
        } else if self.calm.is_none() {
            self.start_anew();
        } else {
            self.start_alone_if_nobody_lives();
        }
    }

    /// A node that waits for its other half although that lives, or is down, waits in vain.
    fn give_up_waiting(&mut self) {
        let env = &mut self.env;
        let patience = env.plan.timing.timeout * 4 + std::time::Duration::from_secs(6);
        for host in &mut self.hosts {
            let waits = host.process.as_deref().is_some_and(|process| {
                let starts = matches!(
                    process.part,
                    Part::Reading(_) | Part::Meeting { .. } | Part::ClaimingFirst { .. }
                );
                starts && env.now >= process.since + patience
            });
            if waits {
                env.tell(host.index(), || "waits in vain and is stopped".into());
                host.remove(env);
            }
        }
    }

    /// Hosts that are down become spares while somebody lives alone. True if somebody does and will not be stopped.
    fn start_spares(&mut self) -> bool {
        let lives_alone = |host: &Host| host.process.as_deref().is_some_and(Process::is_alone);
        if !self.hosts.iter().any(lives_alone) || self.env.dice.chance(100) {
            return false;
        }
        let env = &mut self.env;
        for host in &mut self.hosts {
            if host.is_dead(env) && env.dice.chance(700) {
                host.start(env, StartAs::Standby);
            }
        }
        true
    }

    /// Both, whoever holds the last term: they are told if it is neither. In quiet times a person looks, and starts a spare that
    /// holds it alone.
    fn start_pair(&mut self) {
        let spare_holds = self.calm.is_some() && self.arbiter.last_holder() == Some(node_of(PAIRED));
        if spare_holds {
            return self.hosts[PAIRED].start(&mut self.env, StartAs::Alone);
        }
        let primary = self.env.dice.below(2) as usize;
        self.hosts[primary].start(&mut self.env, StartAs::Primary);
        self.hosts[1 - primary].start(&mut self.env, StartAs::Backup);
    }

    /// A VM that has lived alone for long enough is stopped, to be started as a pair again.
    fn start_anew(&mut self) {
        let env = &mut self.env;
        for host in &mut self.hosts {
            let Some(process) = host.process.as_deref_mut() else {
                continue;
            };
            let long = env.now >= process.since + env.plan.timing.timeout * 4;
            if process.is_alone() && long && env.dice.chance(600) {
                process.stop(env);
            }
        }
    }

    /// In quiet times an operator does what is needed: if nobody lives and nobody will, one node is started alone, or
    /// both are started again.
    fn start_alone_if_nobody_lives(&mut self) {
        let env = &mut self.env;
        let hopeful = self.hosts.iter().any(|host| {
            host.process.as_deref().is_some_and(|process| {
                !matches!(
                    process.part,
                    Part::Halted | Part::Over | Part::Meeting { .. } | Part::Standby(_)
                )
            })
        });
        let waits = |host: &Host| {
            let part = host.process.as_deref().map(|process| &process.part);
            matches!(part, Some(Part::Meeting { .. } | Part::Standby(_))) || host.is_dead(env)
        };
        if !hopeful && self.hosts.iter().all(waits) {
            self.hosts.iter_mut().for_each(|host| host.remove(env));
            self.start_pair();
        }
    }

    /// A process is killed and started again at once, unless it has spoken: then its last words leave first.
    pub(super) fn restart(&mut self, host: usize) {
        let env = &mut self.env;
        let place = &mut self.hosts[host];
        let Some(process) = place.process.as_deref() else {
            return;
        };
        env.tell(host, || "is killed".into());
        if process.has_spoken() {
            place.remove(env);
            place.ready_at = env.now.later(env.plan.slowest_departure());
        } else if host >= PAIRED {
            place.start(env, StartAs::Standby);
        } else {
            let role = env
                .dice
                .pick(&[StartAs::Primary, StartAs::Backup, StartAs::Alone, StartAs::Alone]);
            place.start(env, role);
        }
    }

    /// The operator starts a node that is down, whatever the other one does.
    pub(super) fn meddle(&mut self, host: usize) {
        let env = &mut self.env;
        if self.hosts[host].is_dead(env) && host >= PAIRED {
            self.hosts[host].start(env, StartAs::Standby);
        } else if self.hosts[host].is_dead(env) {
            let role = env
                .dice
                .pick(&[StartAs::Primary, StartAs::Backup, StartAs::Alone]);
            self.hosts[host].start(env, role);
        }
    }
}
