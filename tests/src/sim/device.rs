//! The edge of a simulated host: what its VMM shows its device processes, and how their outputs leave.
//!
//! [`Card`] and [`Drive`] do what `vhost-net-ft/src/session.rs` and `vhost-blk-ft/src/submit.rs` do; what may leave is
//! decided by the protocol's `Outbox` and `Gate`, here as there, with a clock that is read at the last moment. Between
//! that look and the output itself some time passes. The protocol documents that nothing closes this gap, so it is
//! modelled within the documented limit: an output is out before the lease that it was looked up in is over.

mod card;
mod drive;

pub(crate) use card::Card;
pub(crate) use drive::Drive;

use lockstep_protocol::ids::{LogOffset, Position, Term};
use lockstep_protocol::outbox::Gate;
use lockstep_protocol::time::Instant;

use super::agenda::{Boot, Event};
use super::chain::{Chain, State};
use super::clock::HostClock;
use super::env::Env;
use super::guest::{Job, Reply, Work};
use super::wires::ConnId;

/// What the VMM wants a device process to do with the outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A backup, or not yet decided.
    #[default]
    Quiet,
    /// A primary.
    Live,
    /// Another host is live: drop everything, for good.
    Halted,
}

/// The gate as it stands in memory that the VMM and a device process share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown {
    facts: Gate,
    mode: Mode,
}

impl Default for Shown {
    fn default() -> Self {
        Self {
            facts: Gate::SHUT,
            mode: Mode::Quiet,
        }
    }
}

impl Shown {
    /// The backup holds every record before this. Never goes back.
    pub(crate) fn publish_acked(&mut self, acked: LogOffset) {
        self.facts.acked = self.facts.acked.max(acked);
    }

    /// Outputs may leave until then.
    pub(crate) fn publish_lease(&mut self, until: Instant) {
        self.facts.lease_until = until;
    }

    /// What the process shall do.
    pub(crate) fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// A host that was alone gets a backup: outputs wait for acks from `acked` on, and for a lease (I13).
    pub(crate) fn await_backup(&mut self, acked: LogOffset) {
        self.facts = Gate {
            acked,
            lease_until: Instant::ZERO,
        };
    }

    /// This host holds its term alone.
    pub(crate) fn go_live_alone(&mut self) {
        self.publish_acked(Gate::ALONE.acked);
        self.publish_lease(Gate::ALONE.lease_until);
        self.set_mode(Mode::Live);
    }

    /// What the process shall do.
    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// What the output rule wants to know. A gate that is not live has no lease.
    pub(crate) fn gate(&self) -> Gate {
        match self.mode {
            Mode::Live => self.facts,
            Mode::Quiet | Mode::Halted => Gate {
                lease_until: Instant::ZERO,
                ..self.facts
            },
        }
    }
}

/// Where a device process runs, and for whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Desk {
    /// Which host.
    pub(crate) host: usize,
    /// Which start of its process.
    pub(crate) boot: Boot,
    /// The host's clock.
    pub(crate) clock: HostClock,
    /// The term that the VMM lives in or follows.
    pub(crate) term: Term,
    /// The session with the backup that its outputs wait for, as long as they do.
    pub(crate) session: Option<ConnId>,
    /// Where the log of that session begins, if its term began with a spare.
    pub(crate) copied_at: Option<LogOffset>,
}

impl Desk {
    /// Now, on the host's clock.
    pub(crate) fn now(&self, env: &Env) -> Instant {
        self.clock.shows(env.now)
    }
}

/// What leaves a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// A frame for a client.
    Reply(Reply),
    /// A write to the shared disk.
    Write(Job),
}

/// An output, and what it was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Made {
    /// What it is.
    pub(crate) output: Output,
    /// What must be acked before it leaves.
    pub(crate) needs: LogOffset,
    /// Where the guest called for it.
    pub(crate) position: Position,
}

impl Made {
    /// The state of the server that it shows to the outside.
    fn shows(&self) -> Option<State> {
        match self.output {
            Output::Reply(reply) => Some(reply.state),
            Output::Write(Job {
                work: Work::Write(_, block),
                ..
            }) => Some(block.0),
            Output::Write(_) => None,
        }
    }

    /// Does it tell somebody that its state is kept on the disk?
    fn is_told_kept(&self) -> bool {
        matches!(self.output, Output::Reply(reply) if reply.kept)
    }
}

/// An output on its last few metres.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Departure {
    /// Who let it go.
    pub(crate) desk: Desk,
    /// What it is.
    pub(crate) made: Made,
}

/// Lets an output go that was looked up now: it is out before what is left of its lease is over.
fn depart(env: &mut Env, desk: &Desk, gate: &Gate, made: Made, chain: Option<&Chain>) {
    let takes = env.dice.scaled(env.plan.departure);
    let left = gate.lease_until.saturating_since(desk.now(env));
    let takes = takes.min(desk.clock.lasts(left).saturating_sub(1));
    let shown = made.shows().zip(chain);
    if let Some((state, chain)) = shown
        && let Err(sentence) = env.oracle.history.shows(chain, state, made.is_told_kept())
    {
        env.accuse("I4", desk.host, &sentence);
    }
    let departs = Departure { desk: *desk, made };
    env.agenda
        .note(env.now.later(takes), Event::Departs(Box::new(departs)));
}
