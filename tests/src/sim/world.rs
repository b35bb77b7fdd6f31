//! A simulated world: two hosts, an arbiter, a shared disk, an outside, and what goes wrong between them. One thread,
//! one agenda, one seed.
//!
//! [`World::run`] lets things happen in their order until all is well after the last fault, or the oracle sees what
//! must not happen.

use super::agenda::{Actor, Agenda, Boot, Event};
use super::arbiter::{Answered, Arbiter};
use super::clock::{HostClock, Moment};
use super::device::{Departure, Output};
use super::dice::Dice;
use super::disk::SharedDisk;
use super::env::{ARBITER, Env, HOSTS, NAMES, PAIRED};
use super::guest::{Job, Work};
use super::host::Host;
use super::inspect;
use super::oracle::{Oracle, Speaker, Tally, Violation};
use super::outside::Outside;
use super::plan::Plan;
use super::runs::Runs;
use super::stale::OldWords;
use super::story::Story;
use super::wires::Wires;

/// Parts what is drawn for spares from what a seed meant before there were any.
const SPARES: u64 = 0x5af3_0000_0000_0000;
/// More happens in no story.
const EVENTS_MAX: u64 = 20_000_000;

/// What came of a seed.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What must not have happened, if it did.
    pub violation: Option<Violation>,
    /// How much time passed in the world, in nanoseconds.
    pub simulated_ns: u64,
    /// How many things happened.
    pub events: u64,
    /// What they were.
    pub tally: Tally,
    /// The story, if it was to be told.
    pub story: Vec<String>,
}

/// One world.
#[derive(Debug)]
pub(crate) struct World {
    pub(super) env: Env,
    pub(super) hosts: Vec<Host>,
    pub(super) arbiter: Arbiter,
    pub(super) outside: Outside,
    /// Since when nothing goes wrong any more.
    pub(super) calm: Option<Moment>,
}

impl World {
    /// The world of a seed, at its beginning.
    pub(crate) fn new(seed: u64, story: Story) -> Self {
        let mut dice = Dice::of(seed);
        let mut more = Dice::of(seed ^ SPARES);
        let plan = Plan::draw(&mut dice, &mut more);
        let hosts = (0..plan.hosts())
            .map(|index| {
                let dice = if index < PAIRED { &mut dice } else { &mut more };
                let begin = dice.between((1_000_000_000, 1_000_000_000_000_000));
                Host::new(index, HostClock::new(begin, plan.drift[index]))
            })
            .collect();
        let mut env = Env {
            now: Moment::default(),
            dice,
            plan,
            agenda: Agenda::of(HOSTS),
            wires: Wires::between(HOSTS + 1),
            disk: SharedDisk::default(),
            oracle: Oracle::default(),
            story,
            old_words: OldWords::default(),
            runs: Runs::default(),
            slow_replay_until: Moment::default(),
            slow_until: Moment::default(),
        };
        env.agenda.note(Moment::default(), Event::Operator);
        let first = env.dice.between(env.plan.gap);
        env.agenda.note(Moment::at(first), Event::Fault);
        env.agenda.note(Moment::at(env.plan.trouble), Event::Calm);
        let outside = Outside::begin(&mut env);
        Self {
            env,
            hosts,
            arbiter: Arbiter::new(),
            outside,
            calm: None,
        }
    }

    /// Lets everything happen.
    pub(crate) fn run(mut self) -> Outcome {
        let mut events = 0;
        while self.env.oracle.violation().is_none() && !self.is_well() {
            let Some((at, event)) = self.env.agenda.next() else {
                break;
            };
            self.env.now = at;
            events += 1;
            if events == EVENTS_MAX {
                let sentence = "Things happen without end".into();
                self.env.oracle.accuse(at, "I14", sentence);
            }
            self.happen(event);
        }
        Outcome {
            violation: self.env.oracle.violation().cloned(),
            simulated_ns: self.env.now.nanos(),
            events,
            tally: self.env.oracle.tally,
            story: self.env.story.into_lines(),
        }
    }

    fn happen(&mut self, event: Event) {
        let env = &mut self.env;
        match event {
            Event::Alarm { host, boot, actor } => self.ring(host, boot, actor),
            Event::Arrival(arrival) => {
                if let Some(word) = env.wires.arrive(env.now, arrival)
                    && let Some(process) = &mut self.hosts[arrival.to].process
                {
                    process.arrive(env, arrival, word);
                }
            }
            Event::Frame { host, bytes } => {
                if let Some(process) = &mut self.hosts[host].process {
                    process.receive(env, bytes);
                }
            }
            Event::Told(reply) => {
                if let Err(sentence) = self.outside.hear(env, reply) {
                    env.oracle.accuse(env.now, "I4", sentence);
                }
            }
            Event::Client(client) => self.outside.act(env, client, self.calm.is_some()),
            Event::Departs(departure) => self.depart(&departure),
            Event::Asked(asking) => self.ask_arbiter(*asking),
            Event::Answered(answered) => self.answer(*answered),
            Event::GivesUp { host, boot, attempt } => {
                if let Some(process) = self.hosts[host].process_of(boot) {
                    process.give_up(env, attempt);
                }
            }
            Event::Fault => self.fault(),
            Event::Heal => {
                for arrival in env.wires.release(env.now) {
                    let at = env.now.later(env.travel());
                    env.agenda.note(at, Event::Arrival(arrival));
                }
            }
            Event::Operator => self.operate(),
            Event::Calm => self.calm_down(),
            Event::Judgement => inspect::recovery(&mut self.env, &self.hosts),
        }
    }

    fn ring(&mut self, host: usize, boot: Boot, actor: Actor) {
        let (env, place) = (&mut self.env, &mut self.hosts[host]);
        if place.process_of(boot).is_none() || !env.agenda.rings(env.now, host, actor) {
            return;
        }
        let paused = place.paused_until(actor);
        if env.now < paused {
            let at = paused.later(env.dice.scaled(env.plan.wake_up));
            return env.agenda.wake(at, host, boot, actor);
        }
        if let Some(process) = place.process_of(boot) {
            process.wake(env, actor);
        }
        inspect::after(&mut self.env, &self.hosts, host);
    }

    /// An output is on its way out; if its host has died meanwhile, it may have left or not.
    fn depart(&mut self, departure: &Departure) {
        let Departure { desk, made } = departure;
        let env = &mut self.env;
        let process = self.hosts[desk.host].process_of(desk.boot);
        if process.is_none() && env.dice.chance(500) {
            return;
        }
        env.oracle.tally.outputs += 1;
        let speaker = Speaker {
            host: desk.host,
            boot: desk.boot,
        };
        if let Err(sentence) = env.oracle.terms.spoke(desk.term, speaker, made.position) {
            env.accuse("I6", desk.host, &sentence);
        }
        env.story.tell(env.now, &NAMES[desk.host], || {
            format!("lets out {:?}", made.output)
        });
        match made.output {
            Output::Reply(reply) => self.outside.send(env, desk.host, reply),
            Output::Write(Job {
                head,
                work: Work::Write(sector, block),
            }) => {
                env.disk.write(sector, block);
                if let Some(process) = process {
                    process.drive.landed(env, &process.desk, head);
                }
            }
            Output::Write(_) => {}
        }
        inspect::explained(&mut self.env, &self.hosts, departure);
    }

    /// A question has come as far as the arbiter, if the link lets it.
    fn ask_arbiter(&mut self, asking: super::arbiter::Asking) {
        let env = &mut self.env;
        let (host, cut_until) = (asking.desk.host, env.wires.cut_until(asking.desk.host, ARBITER));
        if env.now < cut_until {
            return env.agenda.note(cut_until, Event::Asked(Box::new(asking)));
        }
        let Some(answer) = self.arbiter.hear(env, &asking) else {
            return;
        };
        env.story.tell(env.now, &"arbiter", || {
            format!("says to {}: {answer:?}", NAMES[host])
        });
        let at = env.now.later(env.travel());
        let answered = Answered {
            desk: asking.desk,
            attempt: asking.attempt,
            answer,
        };
        env.agenda.note(at, Event::Answered(Box::new(answered)));
    }

    /// The arbiter's answer comes back; a host that sleeps hears it when it wakes up.
    fn answer(&mut self, answered: Answered) {
        let (env, host) = (&mut self.env, answered.desk.host);
        let waits_until = env
            .wires
            .cut_until(ARBITER, host)
            .max(self.hosts[host].paused_until(Actor::Vcpu));
        if env.now < waits_until {
            return env.agenda.note(waits_until, Event::Answered(Box::new(answered)));
        }
        if let Some(process) = self.hosts[host].process_of(answered.desk.boot) {
            process.answered(env, answered);
        }
        inspect::after(&mut self.env, &self.hosts, host);
    }

    /// Nothing goes wrong any more, and every client was answered since.
    fn is_well(&self) -> bool {
        self.calm
            .is_some_and(|calm| self.outside.were_answered_since(calm) && inspect::is_settled(&self.hosts))
    }
}
