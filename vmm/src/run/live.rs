//! The run loop of the host that talks to the outside: a primary, or a host that holds its term alone.

use super::reprotect::Search;
use super::{Ended, Host, start};
use crate::ft::die::DyingSink;
use crate::ft::pair::PrimarySide;
use crate::ft::port::DevicePort;
use crate::ft::record::{LogSink, PeerLost, Recorder, WindowError};
use crate::ft::replay::pairing_of;
use crate::ft::takeover::{Settled, settle};
use crate::machine::{Advance, End, Exit};
use crate::status::{Role, What};
use crate::vcpu::Watchdog;
use anyhow::Context;
use lockstep_protocol::ids::{LogOffset, Position, Term};
use lockstep_protocol::message;
use lockstep_protocol::record::Input;
use lockstep_protocol::session::Parting;
use lockstep_protocol::takeover::Deed;
use lockstep_staging::gate::boottime;
use std::sync::Arc;
use std::time::Instant;

/// The log of a host that is alone: nobody reads it, so only its length is kept.
#[derive(Debug)]
pub(super) struct NoLog {
    end: LogOffset,
}

impl NoLog {
    /// Goes on counting at `end`.
    pub(super) fn from(end: LogOffset) -> Self {
        Self { end }
    }
}

impl LogSink for NoLog {
    fn append(&mut self, _: Position, inputs: &[Input<&[u8]>]) -> Result<LogOffset, PeerLost> {
        let start = self.end;
        self.end = start.advance(inputs.len() as u64);
        Ok(start)
    }

    fn is_lost(&self) -> bool {
        false
    }

    fn has_backup(&self) -> bool {
        false
    }

    fn end(&self) -> LogOffset {
        self.end
    }
}

/// A host that talks to the outside, with its backup or without.
pub(super) struct Live {
    pub(super) recorder: Recorder,
    pub(super) pair: Option<PrimarySide>,
    pub(super) term: Term,
    /// As long as there is no backup and one could be made.
    pub(super) search: Option<Search>,
}

/// Powers the VM on without a backup, or goes on with one that comes from a snapshot.
pub(super) fn start_alone(host: &mut Host, ports: Vec<DevicePort>) -> anyhow::Result<Ended> {
    let began = boottime();
    let last = start::last_term(host)?;
    start::check_nobody_else_lives(host, &last, false)?;
    let term = start::claim_first(host, last.term)?;
    start::outlast_leases(host, &last, began);
    ports.iter().for_each(DevicePort::go_live_alone);
    host.monitor.set_role(Role::Alone, term);
    host.monitor.note(What::Live);
    let recorder = Recorder::new(
        Box::new(NoLog::from(LogOffset::ZERO)),
        ports,
        host.clock(),
        host.waker.clone(),
    )
    .with_console(host.typed.clone())
    .with_errands(host.errands.clone());
    let live = Live {
        recorder,
        pair: None,
        term,
        search: Search::wanted(host),
    };
    match host.machine.position() {
        Position::ZERO => power_on(host, live),
        _ => live.resume(host),
    }
}

/// Powers the VM on once the backup is there and the term is claimed.
pub(super) fn start_protected(host: &mut Host, ports: Vec<DevicePort>) -> anyhow::Result<Ended> {
    let last = start::last_term(host)?;
    start::check_nobody_else_lives(host, &last, true)?;
    let pair = PrimarySide::connect(
        start::pair_config(host, &ports, message::Role::Primary, &last)?,
        host.context(&ports),
    )?;
    host.monitor.note(What::PeerConnected);
    // Only now: a host that answers as a backup is certainly not live, and no third one holds the last term.
    let term = start::claim_first(host, last.term)?;
    pair.open_gates();
    host.monitor.set_pair(Some(pair.probe()));
    host.monitor.set_role(Role::Primary, term);
    host.monitor.note(What::Live);
    let sink: Box<dyn LogSink> = match host.die_at_record {
        Some(last) => Box::new(DyingSink::new(pair.sink(), last)),
        None => Box::new(pair.sink()),
    };
    let recorder = Recorder::new(sink, ports, host.clock(), host.waker.clone())
        .with_console(host.typed.clone())
        .with_errands(host.errands.clone());
    power_on(
        host,
        Live {
            recorder,
            pair: Some(pair),
            term,
            search: None,
        },
    )
}

fn power_on(host: &mut Host, mut live: Live) -> anyhow::Result<Ended> {
    host.stop.heed();
    let seed = rand::random();
    if live.pair.is_some() {
        let pairing = pairing_of(&seed);
        live.recorder
            .ports()
            .iter()
            .for_each(|port| port.begin_pairing(pairing));
    }
    while let Err(error) = live.recorder.power_on(&mut host.machine, seed) {
        live.survive(host, error)?;
    }
    live.run(host)
}

impl Live {
    /// Runs the guest until it ends or this process is asked to stop.
    pub(super) fn run(mut self, host: &mut Host) -> anyhow::Result<Ended> {
        if host.machine.is_several() {
            return self.run_in_epochs(host);
        }
        let pulse = Arc::clone(host.machine.pulse());
        let _watchdog = Watchdog::start(pulse, host.config.pair.stall_limit)
            .context("Cannot watch for a guest that makes no exits")?;
        loop {
            let ended = match host.machine.advance()? {
                Advance::Exit(mut exit) => self.window(host, &mut exit)?,
                Advance::Stalled => self.stalled(host)?,
            };
            if let Some(ended) = ended {
                return Ok(self.leave(host, ended));
            }
        }
    }

    /// The same for a guest with several vCPUs: each epoch ends in a window.
    fn run_in_epochs(mut self, host: &mut Host) -> anyhow::Result<Ended> {
        loop {
            let (recorder, stop) = (&mut self.recorder, &host.stop);
            let mut exit = host
                .machine
                .run_epoch(&host.waker, |is_called| recorder.rest(is_called, stop))?;
            if let Some(ended) = self.window(host, &mut exit)? {
                return Ok(self.leave(host, ended));
            }
        }
    }

    /// Goes on in a window that is open already.
    pub(super) fn run_from(mut self, host: &mut Host, mut exit: Exit) -> anyhow::Result<Ended> {
        match self.window(host, &mut exit)? {
            Some(ended) => Ok(self.leave(host, ended)),
            None => self.run(host),
        }
    }

    /// Serves one window, whatever it takes; says when it was the last one.
    fn window(&mut self, host: &mut Host, exit: &mut Exit) -> anyhow::Result<Option<Ended>> {
        let end = exit.end;
        loop {
            if host.stop.is_asked() {
                return Ok(Some(Ended::Stopped));
            }
            // Before the sleep of a guest that idles: it may be a long one.
            self.listen_for_spares(host);
            match self.recorder.window(&mut host.machine, exit, &host.stop) {
                Ok(()) => break,
                Err(error) => self.survive(host, error)?,
            }
        }
        self.served(host, end)
    }

    /// Everything that waited has entered: what else there is to do before the guest runs on, if it does.
    fn served(&mut self, host: &mut Host, end: Option<End>) -> anyhow::Result<Option<Ended>> {
        host.observe();
        host.monitor.late(self.recorder.lateness());
        host.monitor.deltas(self.recorder.deltas());
        if let Some(ended) = self.lost_device() {
            return Ok(Some(ended));
        }
        if end.is_none() {
            self.heal(host)?;
            self.see_to_errand(host);
            self.reprotect(host)?;
        }
        Ok(end.map(Ended::Guest))
    }

    /// A device process of this host is gone: the backup has its own. Without a backup the guest goes on with what is
    /// left.
    fn lost_device(&self) -> Option<Ended> {
        let lost = self.recorder.ports().iter().find(|port| !port.is_alive())?;
        self.pair.as_ref().map(|_| Ended::DeviceLost(lost.kind()))
    }

    /// The guest was stopped in the middle of a run: what waits for it enters there. It keeps most of its time.
    fn stalled(&mut self, host: &mut Host) -> anyhow::Result<Option<Ended>> {
        let begun = Instant::now();
        loop {
            if host.stop.is_asked() {
                return Ok(Some(Ended::Stopped));
            }
            match self.recorder.stalled(&mut host.machine) {
                Ok(()) => break,
                Err(error) => self.survive(host, error)?,
            }
        }
        host.machine.pulse().owe(begun.elapsed());
        self.served(host, None)
    }

    /// A backup that has diverged is made equal again, or given up.
    fn heal(&mut self, host: &mut Host) -> anyhow::Result<()> {
        match self.recorder.heal(&mut host.machine) {
            Ok(()) => Ok(()),
            Err(error) => self.survive(host, error),
        }
    }

    /// A lost backup is survived by claiming the next term; anything else is not.
    pub(super) fn survive(&mut self, host: &mut Host, error: WindowError) -> anyhow::Result<()> {
        let (WindowError::PeerLost(_), Some(pair)) = (&error, self.pair.take()) else {
            return Err(error.into());
        };
        host.monitor.set_role(Role::TakingOver, self.term);
        host.monitor.set_pair(None);
        // The sink goes first: the session belongs to one holder when it ends.
        self.recorder.set_sink(Box::new(NoLog::from(pair.log_end())));
        let mut claiming = pair.suspect();
        let monitor = &host.monitor;
        let note = |deed: &Deed| {
            if matches!(deed, Deed::Claim { .. }) {
                monitor.note(What::Claiming);
            }
        };
        let settled = settle(&mut claiming, &mut host.seat, note, || host.stop.is_asked())?;
        match settled {
            Settled::Lives(term) => {
                host.monitor.note(What::Claimed);
                self.term = term;
                self.recorder.ports().iter().for_each(DevicePort::go_live_alone);
                host.monitor.set_role(Role::Alone, term);
                self.search = Search::wanted(host);
                Ok(())
            }
            Settled::Stopped => Ok(()),
            Settled::Halts { by, term } => Err(host.halt(self.recorder.ports(), &by, term)),
        }
    }

    /// Ends cleanly: the last outputs leave before the process does, and the backup learns why.
    fn leave(mut self, host: &Host, ended: Ended) -> Ended {
        self.recorder.drain(&host.machine, OUTPUTS_LEAVE);
        drop(self.recorder);
        host.monitor.set_pair(None);
        if let Some(pair) = self.pair {
            pair.goodbye(match ended {
                Ended::Guest(End::PowerOff) => Parting::PowerOff,
                Ended::Guest(_) => Parting::Failed,
                Ended::Stopped => Parting::Stopped,
                Ended::DeviceLost(_) => Parting::DeviceFailed,
            });
        }
        ended
    }
}

/// How long a VM that ended waits for its last outputs to leave.
const OUTPUTS_LEAVE: std::time::Duration = std::time::Duration::from_secs(1);
