//! The window of a live machine: what came from the outside becomes records, and enters.
//!
//! The run loop of a primary (or of a host that is alone) calls [`Recorder::window`] after every exit. The recorder
//! gathers what the device processes staged, hands it to the log in one piece, injects it by the same function that a
//! backup calls, and orders from the device processes what the guest kicked. What may leave is decided by the gate.

mod epoch;
mod heal;
mod orders;
mod sink;
mod stall;

pub use sink::{LogSink, PeerLost};

use super::batch::Batch;
use super::clock::HostClock;
use super::delta::{DeltaCounts, DeltaMaker, MakeError};
use super::digest::Digester;
use super::inject::InjectError;
use super::lateness::Lateness;
use super::pace::Pace;
use super::port::{DevicePort, follow_driver};
use super::wait::{self, Waker};
use crate::console::Typed;
use crate::errand::Errands;
use crate::machine::{Exit, IdleLimit, Machine};
use crate::state::dirty::Page;
use crate::stop::Stop;
use crate::transfer::source::Attention;
use lockstep_protocol::ids::{GuestTime, LogOffset};
use lockstep_protocol::record::Input;
use lockstep_protocol::window;
use std::time::{Duration, Instant};

/// A guest that makes exits without idling sees its clock move at least this often.
const TICK_EVERY: Duration = Duration::from_millis(1);
/// How long the records of a busy guest wait for company: each sending costs both hosts a packet and a wake-up. An
/// output never waits; nor does a guest that sleeps.
const SEND_EVERY: Duration = Duration::from_millis(4);
/// How long to sleep between two looks at outputs that are still held, after the guest is over.
const DRAIN_NAP: Duration = Duration::from_millis(1);

/// Why a window could not be served.
#[derive(Debug, thiserror::Error)]
pub enum WindowError {
    /// The backup is gone: claim, set another sink, and call [`Recorder::window`] again.
    #[error(transparent)]
    PeerLost(#[from] PeerLost),
    /// Our own input did not fit our own machine.
    #[error("A recorded input did not fit the machine")]
    Inject(#[from] InjectError),
    /// What a backup needs cannot be told.
    #[error("The guest's state cannot be read for its backup")]
    Delta(#[source] MakeError),
}

/// Records and injects for a live machine.
pub struct Recorder {
    sink: Box<dyn LogSink>,
    ports: Vec<DevicePort>,
    clock: HostClock,
    waker: Waker,
    typed: Typed,
    lateness: Lateness,
    batch: Batch,
    attention: Attention,
    errands: Option<Errands>,
    /// How many device processes were used when the run loop was last told.
    used: usize,
    /// When records were last sent without an output that waits for them.
    sent_at: GuestTime,
    deltas: DeltaMaker,
    counts: DeltaCounts,
    digester: Digester,
    /// When the backup was last given something to compare.
    pace: Pace,
}

impl Recorder {
    /// A recorder over `ports`, for a guest whose time goes on from `clock`. `waker` ends its sleeps.
    #[must_use]
    pub fn new(sink: Box<dyn LogSink>, ports: Vec<DevicePort>, clock: HostClock, waker: Waker) -> Self {
        Self {
            sink,
            used: ports.len(),
            ports,
            clock,
            waker,
            typed: Typed::default(),
            lateness: Lateness::default(),
            batch: Batch::default(),
            attention: Attention::default(),
            errands: None,
            sent_at: GuestTime::ZERO,
            deltas: DeltaMaker::default(),
            counts: DeltaCounts::default(),
            digester: Digester::default(),
            pace: Pace::default(),
        }
    }

    /// The device processes.
    #[must_use]
    pub fn ports(&self) -> &[DevicePort] {
        &self.ports
    }

    /// Raised when the run loop is wanted: a window in which the guest idles is then left, as if its time were over.
    #[must_use]
    pub fn attention(&self) -> &Attention {
        &self.attention
    }

    /// Where the log ends.
    #[must_use]
    pub fn log_end(&self) -> LogOffset {
        self.sink.end()
    }

    /// The first record of a log that begins in this window, in the middle of a life: without one a backup is none.
    ///
    /// # Errors
    /// As [`Self::window`].
    pub fn begin_log(&mut self, machine: &mut Machine) -> Result<(), WindowError> {
        self.follow_writes(machine)?;
        let now = self.clock.now();
        self.enter(machine, &[Input::Tick { time: now }])?;
        self.sink.flush();
        Ok(())
    }

    /// How late inputs were at most.
    #[must_use]
    pub fn lateness(&self) -> &Lateness {
        &self.lateness
    }

    /// The deltas that were made.
    #[must_use]
    pub fn deltas(&self) -> DeltaCounts {
        self.counts
    }

    /// From now on the records go to `sink`.
    pub fn set_sink(&mut self, sink: Box<dyn LogSink>) {
        self.deltas.stop();
        self.sink = sink;
    }

    /// From now on what is typed at a console enters from `typed`; its writer wakes the recorder.
    #[must_use]
    pub fn with_console(mut self, typed: Typed) -> Self {
        self.typed = typed;
        self
    }

    /// Goes on counting deltas where a replay ended.
    #[must_use]
    pub fn with_deltas(mut self, counts: DeltaCounts) -> Self {
        self.counts = counts;
        self
    }

    /// From now on errands, too, are a reason to leave a window in which the guest idles.
    #[must_use]
    pub fn with_errands(mut self, errands: Errands) -> Self {
        self.errands = Some(errands);
        self
    }

    /// Tells the device processes where the queues of a machine are whose drivers are at work already.
    pub fn adopt(&mut self, machine: &Machine) {
        self.ports.iter_mut().for_each(|port| port.adopt(machine));
    }

    /// Powers the machine on: the window at position 0.
    ///
    /// # Errors
    /// As [`Self::window`].
    pub fn power_on(&mut self, machine: &mut Machine, seed: [u8; 32]) -> Result<(), WindowError> {
        self.follow_writes(machine)?;
        let now = self.clock.now();
        self.enter(machine, &[Input::PowerOn { seed }, Input::Tick { time: now }])
            .map(|_| ())
    }

    /// Serves the window that `exit` opened, and sleeps in it while the guest idles; `stop` ends the sleep. After
    /// [`WindowError::PeerLost`] the window is still open, and calling again with the same `exit` goes on where this
    /// stopped.
    ///
    /// # Errors
    /// When the backup is lost, or the machine refuses an input.
    pub fn window(&mut self, machine: &mut Machine, exit: &mut Exit, stop: &Stop) -> Result<(), WindowError> {
        if machine.is_several() {
            return self.end_epoch(machine, exit);
        }
        follow_driver(&mut self.ports, machine, exit);
        self.batch.begin();
        let deadline = exit
            .idle
            .map(|limit| earlier(self.deadline(limit), machine.next_deadline()));
        loop {
            if self.sink.is_lost() {
                return Err(PeerLost.into());
            }
            let written = self.follow_writes(machine)?;
            let digest = self.digest(machine, exit, written.as_deref())?;
            self.gather(machine);
            let now = self.clock.now();
            self.lateness.opened(now, self.batch.wakes_guest());
            let mark = exit.calls();
            let tick = self.batch.wakes_guest() || is_due(machine, now, deadline) || written.is_some();
            if tick || mark {
                let start = self.enter_batch(machine, mark, digest.as_deref(), tick.then_some(now))?;
                if mark || (deadline.is_none() && self.is_time_to_send(now)) {
                    self.sink.flush();
                }
                self.order(&mut exit.kicks, window::needs(start, digest.is_some()));
                self.lateness.closed(self.clock.now());
                return Ok(());
            }
            match deadline {
                None => {
                    self.lateness.closed(now);
                    return Ok(());
                }
                Some(_) if stop.is_asked() || self.is_wanted() => return Ok(()),
                Some(until) => {
                    self.sink.flush();
                    let limit = remaining(until, now).into_iter().chain(self.look_in()).min();
                    wait::sleep(&self.ports, &self.waker, limit);
                }
            }
        }
    }

    /// Takes in what waits outside, as far as the machine has room for it.
    fn gather(&mut self, machine: &Machine) {
        for port in &mut self.ports {
            self.batch.gather(port, machine);
        }
        self.batch.add_typed(&self.typed.take());
    }

    /// A delta needs to know what was written since a window in which the backup had the same machine.
    fn follow_writes(&mut self, machine: &Machine) -> Result<Option<Vec<Page>>, WindowError> {
        if !self.sink.has_backup() {
            return Ok(None);
        }
        let followed = self.deltas.follow(machine, self.sink.has_equal_backup());
        followed.map_err(|error| WindowError::Delta(error.into()))
    }

    fn is_time_to_send(&mut self, now: GuestTime) -> bool {
        let due = now.get().saturating_sub(self.sent_at.get()) >= SEND_EVERY.as_nanos() as u64;
        if due {
            self.sent_at = now;
        }
        due
    }

    /// A machine that stands still: lets what a mirrored disk is doing come to its end and enter, in this window. `false`
    /// if it did not within `limit`. Only for a host that is alone.
    ///
    /// # Errors
    /// As [`Self::window`].
    pub fn settle_disks(&mut self, machine: &mut Machine, limit: Duration) -> Result<bool, WindowError> {
        let deadline = Instant::now() + limit;
        for index in 0..self.ports.len() {
            while self.ports[index].is_mirrored() && self.ports[index].works(machine) {
                let port = &mut self.ports[index];
                self.batch.gather(port, machine);
                if self.batch.wakes_guest() {
                    let now = self.clock.now();
                    self.enter_batch(machine, false, None, Some(now))?;
                } else if !self.ports[index].is_alive() || Instant::now() > deadline {
                    return Ok(false);
                } else {
                    self.ports[index].nap();
                }
            }
        }
        Ok(true)
    }

    /// Waits until no device process holds an output any more, at most `limit`: the guest is over, its last words are
    /// not. An own disk image gets all that the guest has asked for, too: so both hosts' images end equal.
    pub fn drain(&mut self, machine: &Machine, limit: Duration) {
        let deadline = Instant::now() + limit;
        self.ports.iter().for_each(DevicePort::flush);
        for port in self.ports.iter_mut().filter(|port| port.is_mirrored()) {
            port.finish(machine, deadline);
        }
        let holds = |port: &DevicePort| {
            let gate = port.gate().snapshot();
            port.is_alive() && gate.held.saturating_add(gate.unread) > 0
        };
        while !self.sink.is_lost() && self.ports.iter().any(holds) && Instant::now() < deadline {
            std::thread::sleep(DRAIN_NAP);
        }
    }

    /// Whether the run loop is wanted for something that needs no input.
    fn is_wanted(&mut self) -> bool {
        let used = self.ports.iter().filter(|port| port.is_alive()).count();
        let lost = used < std::mem::replace(&mut self.used, used);
        lost || self.sink.wants_heal()
            || self.attention.is_wanted()
            || self.errands.as_ref().is_some_and(Errands::is_wanted)
    }

    fn deadline(&mut self, IdleLimit(limit): IdleLimit) -> Option<GuestTime> {
        let nanos = u64::try_from(limit?.as_nanos()).unwrap_or(u64::MAX);
        Some(GuestTime::new(self.clock.now().get().saturating_add(nanos)))
    }

    /// Logs and injects the batch.
    fn enter_batch(
        &mut self,
        machine: &mut Machine,
        mark: bool,
        digest: Option<&[u8]>,
        tick: Option<GuestTime>,
    ) -> Result<LogOffset, WindowError> {
        for port in &mut self.ports {
            self.batch.add_returned(port);
        }
        let batch = std::mem::take(&mut self.batch);
        let inputs: Vec<_> = window::entries(mark, digest, tick, batch.inputs()).collect();
        let entered = self.enter(machine, &inputs);
        drop(inputs);
        self.batch = batch;
        let start = entered?;
        self.batch.clear();
        Ok(start)
    }

    fn enter(&mut self, machine: &mut Machine, inputs: &[Input<&[u8]>]) -> Result<LogOffset, WindowError> {
        let start = self.sink.append(machine.position(), inputs)?;
        for input in inputs {
            machine.inject(input)?;
        }
        Ok(start)
    }
}

/// Whether the guest's clock should move in this window even if nothing else enters.
fn is_due(machine: &Machine, now: GuestTime, deadline: Option<Option<GuestTime>>) -> bool {
    match deadline {
        Some(Some(until)) => now >= until,
        Some(None) => false,
        None => {
            now.get().saturating_sub(machine.time().get()) >= TICK_EVERY.as_nanos() as u64
                || machine.next_deadline().is_some_and(|deadline| now >= deadline)
        }
    }
}

/// The guest's own limit or the board's next deadline, whichever comes first; `None` is no limit.
fn earlier(limit: Option<GuestTime>, deadline: Option<GuestTime>) -> Option<GuestTime> {
    limit.into_iter().chain(deadline).min()
}

fn remaining(until: Option<GuestTime>, now: GuestTime) -> Option<Duration> {
    until.map(|until| Duration::from_nanos(until.get().saturating_sub(now.get())))
}
