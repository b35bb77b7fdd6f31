//! What a seed means: how fast everything is, what may go wrong, and for how long. Drawn once, before the world begins.
//!
//! Each seed allows some kinds of faults and not others: a world in which everything goes wrong all the time never gets
//! far enough for the rare things to happen.

use std::time::Duration;

use lockstep_protocol::log::WindowLimit;
use lockstep_protocol::session::Timing;

use super::clock::DRIFT_MAX;
use super::dice::Dice;
use super::env::{HOSTS, PAIRED};

/// From the least to the most, in nanoseconds.
pub(crate) type Span = (u64, u64);

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
/// Attempts to reach somebody are given up after a second, however slow a pair's timing is.
const SLOWEST: u64 = 100 * MS;

/// The longest request of a world that is flooded.
const FLOOD: u64 = 300_000;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// No letters pass between two hosts, in one direction or both.
    Cut,
    /// No letters pass between a host and the arbiter, in one direction or both.
    CutArbiter,
    /// No frames pass between the outside and a host.
    CutOutside,
    /// A host stops, and goes on later as if nothing had been.
    Pause,
    /// One thread or process of a host is not run for a while.
    Stall,
    /// A host loses power.
    Crash,
    /// One end of a connection sees it break; the other end hears of it, or not.
    Break,
    /// A backup replays slowly.
    SlowReplay,
    /// The network between the hosts is slow.
    SlowNetwork,
    /// The arbiter restarts; its disk may forget what was not synced.
    ArbiterRestart,
    /// A step of the arbiter's store fails, or happens without saying so, or ends it.
    ArbiterMishap,
    /// A word of an earlier session arrives in a later one.
    StaleWord,
    /// An operator stops a node in good order.
    Stop,
    /// An operator starts a node that was down, at a moment of his choice.
    Meddle,
    /// A node's process is killed, and started again at once by whatever watches over it.
    Restart,
}

/// All of them.
const KINDS: [Kind; 15] = [
    Kind::Cut,
    Kind::CutArbiter,
    Kind::CutOutside,
    Kind::Pause,
    Kind::Stall,
    Kind::Crash,
    Kind::Break,
    Kind::SlowReplay,
    Kind::SlowNetwork,
    Kind::ArbiterRestart,
    Kind::ArbiterMishap,
    Kind::StaleWord,
    Kind::Stop,
    Kind::Meddle,
    Kind::Restart,
];

/// The world of one seed.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The pair's timing.
    pub(crate) timing: Timing,
    /// How much of the log may be unacked.
    pub(crate) window: WindowLimit,
    /// How many bytes of the log stream may be unread.
    pub(crate) stream_window: usize,
    /// How long a letter travels.
    pub(crate) delay: Span,
    /// In how many of thousand cases it is lost and sent again, much later.
    pub(crate) losses: u64,
    /// How long a thread that was woken waits for a processor.
    pub(crate) wake_up: Span,
    /// How long the guest runs between two exits.
    pub(crate) exit: Span,
    /// How long a record takes to replay.
    pub(crate) replay: Span,
    /// How long an output takes from the look at the lease until it is out.
    pub(crate) departure: Span,
    /// How long a client thinks.
    pub(crate) think: Span,
    /// In how many of thousand cases it wants its request kept on the disk.
    pub(crate) kept: u64,
    /// The most padding in a request.
    pub(crate) padding: usize,
    /// In how many of thousand runs the guest computes what cannot be recomputed.
    pub(crate) stalls: u64,
    /// In how many of thousand records a bit flips in the backup's guest.
    pub(crate) flips: u64,
    /// In how many of thousand windows a digest is logged.
    pub(crate) digests: u64,
    /// In how many of thousand requests the machine is switched off.
    pub(crate) power_off: u64,
    /// Hosts that are down are started as spares, and there is one more of them.
    pub(crate) spares: bool,
    /// How much each host's clock gains.
    pub(crate) drift: [i64; HOSTS],
    /// What may go wrong.
    pub(crate) kinds: Vec<Kind>,
    /// How long nothing new goes wrong.
    pub(crate) gap: Span,
    /// How long a fault lasts.
    pub(crate) fault: Span,
    /// For how long things go wrong.
    pub(crate) trouble: u64,
}

impl Plan {
    /// The plan of a seed. What concerns spares is drawn from `more`: a world without them is what it was before there
    /// were any.
    pub(crate) fn draw(dice: &mut Dice, more: &mut Dice) -> Self {
        let timing = draw_timing(dice);
        let [beat, timeout, lease] = [timing.heartbeat, timing.timeout, timing.lease].map(nanos);
        let slowest = dice.scaled((20 * US, (lease / 5).clamp(40 * US, SLOWEST)));
        let wake_up = dice.scaled((2 * US, (beat / 4).clamp(4 * US, SLOWEST)));
        let think = dice.scaled((beat / 8, beat * 2));
        let fault = (timeout / 8, timeout * 4);
        let padding = dice.pick(&[0, 0, 0, 0, 0, 200, 5_000]);
        // Some worlds are slow, but in each of them the log gets through.
        let stream_window = dice.scaled((64, 1 << 20)).max(8 * padding);
        let plan = Self {
            timing,
            window: draw_window(dice),
            stream_window: stream_window as usize,
            delay: (slowest / 8, slowest),
            losses: dice.pick(&[0, 0, 2, 20]),
            wake_up: (wake_up / 8, wake_up),
            exit: (US, dice.scaled((2 * US, 500 * US))),
            replay: (US, dice.scaled((2 * US, 300 * US))),
            departure: (US, dice.scaled((10 * US, lease.max(20 * US)))),
            think: (think / 4, think * 2),
            kept: dice.pick(&[0, 100, 400]),
            padding: padding as usize,
            power_off: dice.pick(&[0, 0, 0, 1]),
            spares: more.chance(500),
            drift: draw_drift(dice, more),
            kinds: draw_kinds(dice),
            gap: (timeout / 16, dice.scaled((timeout / 4, timeout * 8))),
            fault,
            trouble: timeout * dice.between((20, 80)),
            stalls: dice.pick(&[0, 3, 30]),
            flips: dice.pick(&[0, 0, 0, 1, 5]),
            digests: dice.pick(&[20, 200]),
        };
        match dice.chance(10) {
            true => plan.flooded(),
            false => plan,
        }
    }

    /// A world with so much traffic that a backup that stalls fills its backlog.
    fn flooded(self) -> Self {
        let flood = FLOOD as usize;
        Self {
            timing: Timing::default(),
            window: WindowLimit::default(),
            stream_window: 8 * flood,
            delay: (20 * US, 200 * US),
            losses: 0,
            think: (MS / 2, 2 * MS),
            kept: 0,
            padding: flood,
            // Drawn for another timing: a host that loses power is down for longer than its last words are on their way.
            departure: (10 * US, self.departure.1.min(nanos(Timing::default().lease))),
            kinds: vec![Kind::Stall, Kind::Stall, Kind::SlowReplay, Kind::Crash],
            gap: (20 * MS, 400 * MS),
            fault: (50 * MS, 500 * MS),
            trouble: 2 * SECOND,
            ..self
        }
    }

    /// How many hosts the world has.
    pub(crate) fn hosts(&self) -> usize {
        if self.spares { HOSTS } else { PAIRED }
    }

    /// The longest that an output takes to leave when its host holds its term alone.
    pub(crate) fn slowest_departure(&self) -> u64 {
        self.departure.1
    }

    /// How long the world may take, once nothing goes wrong any more, until all is well.
    pub(crate) fn recovery(&self) -> Duration {
        // Attempts to reach the arbiter or the other host are given up after one to five seconds, several in a row.
        self.timing.timeout * 10 + Duration::from_secs(40)
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// The default, any other, or a slow one: slow worlds are the ones in which many hours pass.
fn draw_timing(dice: &mut Dice) -> Timing {
    let heartbeat = match dice.below(10) {
        0..4 => return Timing::default(),
        4..7 => dice.scaled((MS, 200 * MS)),
        _ => dice.scaled((SECOND, 12 * SECOND)),
    };
    let lease = heartbeat * 2 + 1 + dice.below(heartbeat * 3);
    let timeout = (lease + 1 + dice.below(lease)).min(60 * SECOND);
    let timing = Timing {
        heartbeat: Duration::from_nanos(heartbeat),
        timeout: Duration::from_nanos(timeout),
        lease: Duration::from_nanos(lease.min(timeout - 1)),
    };
    match timing.check() {
        Ok(()) => timing,
        Err(_) => Timing::default(),
    }
}

fn draw_window(dice: &mut Dice) -> WindowLimit {
    match dice.below(3) {
        0 => WindowLimit::default(),
        _ => WindowLimit {
            records: dice.scaled((2, 256)),
            bytes: dice.scaled((256, 1 << 20)),
        },
    }
}

/// Mostly none, sometimes as far apart as is allowed.
fn draw_drift(dice: &mut Dice, more: &mut Dice) -> [i64; HOSTS] {
    let most = DRIFT_MAX as u64;
    let [one, other] = match dice.below(3) {
        0 => [0, 0],
        1 => dice.pick(&[[DRIFT_MAX, -DRIFT_MAX], [-DRIFT_MAX, DRIFT_MAX]]),
        _ => [0, 0].map(|_: i64| dice.between((0, 2 * most)) as i64 - DRIFT_MAX),
    };
    let spare = more.pick(&[0, one, other, DRIFT_MAX, -DRIFT_MAX]);
    [one, other, spare]
}

/// Some, each of them so often that it matters.
fn draw_kinds(dice: &mut Dice) -> Vec<Kind> {
    let mut kinds: Vec<_> = KINDS.into_iter().filter(|_| dice.chance(350)).collect();
    if kinds.is_empty() {
        kinds.push(dice.pick(&KINDS));
    }
    kinds
}
