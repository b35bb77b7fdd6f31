//! The arbiter of a simulated world: the production file store on a disk that can fail, behind a link that can be cut.
//!
//! A host's side of it is [`Seat`]: one attempt at a time, given up after a second, as `arbiter/src/client.rs` does it.
//! A question that was given up may still be on its way, and be answered when nobody waits any more.

use std::path::Path;
use std::time::Duration;

use lockstep_arbiter::register::{Tenure, VmName};
use lockstep_arbiter::store::Store;
use lockstep_arbiter::store::file::FileStore;
use lockstep_protocol::ids::{Holder, NodeName, Term};
use lockstep_protocol::takeover::Verdict;

use super::agenda::Event;
use super::clock::Moment;
use super::device::Desk;
use super::dice::Dice;
use super::env::Env;
use super::platter::{ArbiterDisk, Mishap};

/// How long one attempt may take: `DEFAULT_ATTEMPT` of the client.
pub(crate) const ATTEMPT: Duration = Duration::from_secs(1);
/// More steps than any claim takes.
const STEPS_MAX: u64 = 24;

/// What a host wants to know.
#[derive(Clone, Debug)]
pub(crate) enum Question {
    /// Which term is the newest?
    Read,
    /// May we have the term after this one?
    Claim(Term),
}

/// A question on its way.
#[derive(Clone, Debug)]
pub(crate) struct Asking {
    /// Who asks.
    pub(crate) desk: Desk,
    /// As the register calls it.
    pub(crate) me: Holder,
    /// Which attempt.
    pub(crate) attempt: u64,
    /// What is asked.
    pub(crate) question: Question,
}

/// What the arbiter says.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// The newest term.
    Newest(Option<Tenure>),
    /// Its verdict.
    Verdict(Verdict),
    /// It cannot serve.
    Failed,
}

/// An answer on its way back.
#[derive(Clone, Debug)]
pub(crate) struct Answered {
    /// Who asked.
    pub(crate) desk: Desk,
    /// In which attempt.
    pub(crate) attempt: u64,
    /// What the arbiter says.
    pub(crate) answer: Answer,
}

/// The arbiter.
#[derive(Debug)]
pub(crate) struct Arbiter {
    vm: VmName,
    disk: ArbiterDisk,
    store: FileStore<ArbiterDisk>,
    down_until: Moment,
}

impl Arbiter {
    /// An arbiter that has handed out no term.
    pub(crate) fn new() -> Self {
        let root = Path::new("/terms");
        let disk = ArbiterDisk::with(root);
        Self {
            vm: VmName::new("shop").expect("four letters are a name"),
            store: FileStore::on(disk.clone(), root),
            disk,
            down_until: Moment::default(),
        }
    }

    /// It loses power and comes back then.
    pub(crate) fn restart(&mut self, dice: &mut Dice, until: Moment) {
        self.disk.cut_power(dice);
        self.disk.set_mishap(None);
        self.down_until = until;
    }

    /// Something will go wrong in one of its next steps.
    pub(crate) fn set_mishap(&mut self, dice: &mut Dice) {
        let mishap = dice.pick(&[Mishap::Fails, Mishap::LosesItsReply, Mishap::Tears, Mishap::Dies]);
        self.disk.set_mishap(Some((dice.below(STEPS_MAX), mishap)));
    }

    /// Nothing goes wrong any more.
    pub(crate) fn heal(&mut self) {
        self.disk.set_mishap(None);
        self.down_until = Moment::default();
    }

    /// Who holds the last term, to a person who looks at the directory in quiet times.
    pub(crate) fn last_holder(&self) -> Option<NodeName> {
        let last = self.store.read(&self.vm).ok().flatten();
        last.map(|tenure| tenure.holder.node)
    }

    /// A question has come. No answer if it is down, or dies over it.
    pub(crate) fn hear(&mut self, env: &mut Env, asking: &Asking) -> Option<Answer> {
        if env.now < self.down_until {
            return None;
        }
        let answer = match &asking.question {
            Question::Read => self.store.read(&self.vm).map(Answer::Newest),
            Question::Claim(expected) => self
                .store
                .claim(&self.vm, *expected, &asking.me)
                .map(Answer::Verdict),
        };
        if self.disk.is_dead() {
            // Whoever runs it starts it again; nobody was told anything.
            self.disk.set_mishap(None);
            return None;
        }
        if let Ok(Answer::Verdict(Verdict::Granted { term })) = &answer
            && let Err(sentence) = env.oracle.terms.granted(*term, &asking.me)
        {
            env.oracle.accuse(env.now, "I10", sentence);
        }
        answer.map_or(Some(Answer::Failed), Some)
    }
}

/// A host's place at the arbiter.
#[derive(Debug, Default)]
pub(crate) struct Seat {
    attempts: u64,
    waiting: bool,
}

impl Seat {
    /// Asks once.
    pub(crate) fn ask(&mut self, env: &mut Env, desk: &Desk, me: &Holder, question: Question) {
        self.attempts += 1;
        self.waiting = true;
        let gives_up = desk.clock.moment(desk.now(env) + ATTEMPT);
        env.agenda.note(
            gives_up,
            Event::GivesUp {
                host: desk.host,
                boot: desk.boot,
                attempt: self.attempts,
            },
        );
        env.ask_arbiter(Asking {
            desk: *desk,
            me: me.clone(),
            attempt: self.attempts,
            question,
        });
    }

    /// An answer to an attempt, or its end. True if somebody waited for it.
    pub(crate) fn settles(&mut self, attempt: u64) -> bool {
        let settles = self.waiting && attempt == self.attempts;
        self.waiting &= !settles;
        settles
    }
}

/// What the client makes of an answer to a claim: a verdict that fits the question, or none.
pub(crate) fn verdict_of(answer: Answer, expected: Term) -> Option<Verdict> {
    match answer {
        Answer::Verdict(Verdict::Granted { term }) if term == expected.next() => {
            Some(Verdict::Granted { term })
        }
        Answer::Verdict(Verdict::Refused { term, holder }) if term > expected => {
            Some(Verdict::Refused { term, holder })
        }
        Answer::Verdict(_) | Answer::Newest(_) | Answer::Failed => None,
    }
}
