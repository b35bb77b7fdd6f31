//! The run loop of a backup: it executes what the primary executed, and becomes live when the primary is lost.

use super::live::{Live, NoLog};
use super::reprotect::Search;
use super::standby::own_image;
use super::{DeviceLost, Ended, Host, start};
use crate::ft::pair::{BackupSide, Loss};
use crate::ft::port::DevicePort;
use crate::ft::record::Recorder;
use crate::ft::replay::{Diverged, ReplayError, Replayed, Replayer};
use crate::ft::takeover::{Settled, settle};
use crate::machine::{Advance, End, Exit, StepError};
use crate::monitor::{Monitor, unix_ns};
use crate::status::{Role, Takeover, What};
use crate::vcpu::Watchdog;
use anyhow::{Context, bail};
use lockstep_image::map;
use lockstep_protocol::ids::Term;
use lockstep_protocol::message;
use lockstep_protocol::session::{Parting, PeerLost};
use lockstep_protocol::takeover::{Deed, Takeover as TakeoverMachine};
use lockstep_protocol::time::Instant as Moment;
use lockstep_staging::gate::boottime;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A run that the primary's guest made in some milliseconds at most, with deltas between them, takes no longer than this on
/// any host.
const RUN_MAX: Duration = Duration::from_secs(10);

/// Waits for the primary and follows it.
pub(super) fn start(host: &mut Host, ports: Vec<DevicePort>) -> anyhow::Result<Ended> {
    let last = start::last_term(host)?;
    start::check_nobody_else_lives(host, &last, true)?;
    let pair = BackupSide::listen(
        start::pair_config(host, &ports, message::Role::Backup, &last)?,
        host.context(&ports),
    )?;
    host.monitor.note(What::PeerConnected);
    host.monitor.set_pair(Some(pair.probe()));
    host.monitor.set_role(Role::Backup, pair.term());
    host.stop.heed();
    let replayer =
        Replayer::new(Box::new(pair.source()), ports, host.config.vm.memory_bytes()).with_flip(host.flip_bit);
    Shadow { replayer, pair }.run(host)
}

/// A backup and the session it follows.
pub(super) struct Shadow {
    pub(super) replayer: Replayer,
    pub(super) pair: BackupSide,
}

impl Shadow {
    /// Follows the log from the window that is open now: before the first instruction, or where the machine was copied.
    pub(super) fn run(mut self, host: &mut Host) -> anyhow::Result<Ended> {
        let mut exit = Exit::default();
        let pulse = Arc::clone(host.machine.pulse());
        let watchdog =
            Watchdog::start(pulse, RUN_MAX).context("Cannot watch for a guest that makes no exits")?;
        loop {
            // Before the window: a delta in it brings chips whose words the primary has printed.
            host.observe();
            match self.replayer.window(&mut host.machine, &mut exit) {
                Ok(Replayed::LogEnds) if host.stop.is_asked() => {
                    return Ok(self.leave(host, Parting::Stopped));
                }
                Ok(Replayed::LogEnds) => {
                    drop(watchdog);
                    return self.take_over(host, exit);
                }
                Ok(Replayed::Closed) => {}
                Err(why) => return Err(self.fail(host, why)),
            }
            host.monitor.deltas(self.replayer.deltas());
            if let Some(lost) = self.replayer.ports().iter().find(|port| !port.is_alive()) {
                let why = DeviceLost(lost.kind());
                return Err(self.give_up(host, Parting::DeviceFailed, why));
            }
            // After the window: a delta in it may have healed a guest that ended here and not there.
            if let Some(end) = exit.end {
                self.replayer.settle()?;
                return Ok(Ended::Guest(end));
            }
            exit = match self.advance(host)? {
                Ok(exit) => exit,
                Err(why) => return Err(self.fail(host, why)),
            };
        }
    }

    /// Runs to the next exit, which the primary's guest is known to have made. One that does not come there has diverged.
    fn advance(&mut self, host: &mut Host) -> anyhow::Result<Result<Exit, ReplayError>> {
        let begun = Instant::now();
        let at = host.machine.position();
        let why = loop {
            match host.machine.advance() {
                Ok(Advance::Exit(exit)) => return Ok(Ok(exit)),
                Ok(Advance::Stalled) if begun.elapsed() < RUN_MAX => {}
                Ok(Advance::Stalled) => break Diverged::Stuck(at),
                Err(StepError::Vcpu(error)) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "KVM cannot run the guest"
                    );
                    break Diverged::Broken(at);
                }
                Err(error) => return Err(error.into()),
            }
        };
        let strayed = self.replayer.diverge(&host.machine, &why);
        Ok(strayed.map(|()| Exit::default()))
    }

    fn leave(self, host: &Host, why: Parting) -> Ended {
        drop(self.replayer);
        host.monitor.set_pair(None);
        self.pair.goodbye(why);
        Ended::Stopped
    }

    /// This host cannot follow the log any more.
    fn fail(self, host: &Host, why: ReplayError) -> anyhow::Error {
        let parting = match why {
            ReplayError::Diverged(_) | ReplayError::Delta { .. } => Parting::Failed,
            ReplayError::Mirror(_) => Parting::DiskFailed,
        };
        // Where a guest that had diverged wrote to an image of its own nobody knows.
        let image = own_image(host, self.replayer.ports());
        if let (Parting::Failed, Some(image)) = (parting, image) {
            distrust(image);
        }
        self.give_up(host, parting, why)
    }

    /// This host is no backup any more: the primary learns it at once and goes on alone.
    fn give_up(self, host: &Host, parting: Parting, why: impl Into<anyhow::Error>) -> anyhow::Error {
        let term = self.pair.term();
        self.leave(host, parting);
        host.monitor.note(What::Halted);
        host.monitor.set_role(Role::Halted, term);
        why.into()
    }

    /// The log is replayed to its end; the window that `exit` opened is still open. Claims, waits out the lease, and
    /// goes live in this very window.
    fn take_over(self, host: &mut Host, mut exit: Exit) -> anyhow::Result<Ended> {
        let Self { mut replayer, pair } = self;
        // Who cannot finish the replay must not win the term; that includes what the own disk image has to get.
        replayer.settle()?;
        let mut stages = Stages::at_log_end();
        host.monitor.note(What::Replayed);
        host.monitor.set_pair(None);
        let loss = pair
            .loss()
            .context("The log ended although the primary is there")?;
        if loss.why == PeerLost::Left(Parting::PowerOff) {
            return Ok(Ended::Guest(End::PowerOff));
        }
        if replayer.is_astray() {
            host.monitor.note(What::Halted);
            host.monitor.set_role(Role::Halted, pair.term());
            bail!(
                "The session with the primary is over ({}), and this host's copy of the VM had diverged and was not healed, \
                 so this host does not go on with it; if the VM runs on the other host, start `lockstep standby` here, and \
                 otherwise `lockstep run` on both hosts",
                loss.why
            );
        }
        // With one record of it the machine is powered on, or was copied.
        if !pair.has_log() {
            bail!(
                "The primary left before the log began; start this node again ({})",
                loss.why
            );
        }
        host.monitor.set_role(Role::TakingOver, pair.term());
        // The source goes first: the session belongs to one holder when it ends.
        let deltas = replayer.deltas();
        let ports = replayer.into_ports();
        let mut takeover = pair.take_over();
        takeover.handle_replayed();
        let log = NoLog::from(takeover.end());
        let heard = heard(host, &takeover);
        let monitor = Arc::clone(&host.monitor);
        let settled = settle(
            &mut takeover,
            &mut host.seat,
            |deed| stages.note(deed, &monitor),
            || host.stop.is_asked(),
        )?;
        match settled {
            Settled::Lives(term) => {
                let clock = host.taken_over_clock(boottime().saturating_since(heard));
                let recorder = Recorder::new(Box::new(log), ports, clock, host.waker.clone())
                    .with_deltas(deltas)
                    .with_console(host.typed.clone())
                    .with_errands(host.errands.clone());
                let live = promote(host, recorder, &mut exit, term);
                host.monitor.set_takeover(stages.done(heard, &loss));
                live.run_from(host, exit)
            }
            Settled::Stopped => Ok(Ended::Stopped),
            Settled::Halts { by, term } => Err(host.halt(&ports, &by, term)),
        }
    }
}

/// An image without a map gets everything anew when its host returns as a spare.
fn distrust(image: &Path) {
    match std::fs::remove_file(map::path_of(image)) {
        Err(error) if error.kind() != ErrorKind::NotFound => tracing::error!(
            %error,
            "The map of what changed on this host's image stays, although it is wrong; remove it"
        ),
        _ => tracing::warn!(
            "This host's image is not trusted any more; as a spare it gets a fresh copy of the disk"
        ),
    }
}

/// When the primary was last heard: the lease that the takeover waits out was counted from there.
fn heard(host: &Host, takeover: &TakeoverMachine) -> Moment {
    let lease = start::timing(&host.config).lease_over(Moment::ZERO).as_nanos();
    Moment::from_nanos(takeover.lease_over().as_nanos().saturating_sub(lease))
}

/// Opens the gates and orders what the lost primary left undone.
fn promote(host: &Host, mut recorder: Recorder, exit: &mut Exit, term: Term) -> Live {
    recorder.ports().iter().for_each(DevicePort::go_live_alone);
    // What was kicked in this very window is in flight like everything else: order it once.
    exit.kicks.clear();
    // What was typed at a backup was typed at nobody.
    drop(host.typed.take());
    recorder.reissue(&host.machine);
    host.monitor.note(What::Live);
    host.monitor.set_role(Role::Alone, term);
    Live {
        recorder,
        pair: None,
        term,
        search: Search::wanted(host),
    }
}

/// When the steps of a takeover happened, on CLOCK_BOOTTIME.
struct Stages {
    replayed: Moment,
    granted: Moment,
}

impl Stages {
    fn at_log_end() -> Self {
        let now = boottime();
        Self {
            replayed: now,
            granted: now,
        }
    }

    fn note(&mut self, deed: &Deed, monitor: &Monitor) {
        match deed {
            Deed::Claim { .. } => monitor.note(What::Claiming),
            Deed::Promote { .. } => {
                self.granted = boottime();
                monitor.note(What::Claimed);
            }
            Deed::Halt { .. } => {}
        }
    }

    fn done(&self, heard: Moment, loss: &Loss) -> Takeover {
        let millis = |from: Moment, to: Moment| to.saturating_since(from).as_secs_f64() * 1e3;
        Takeover {
            at_unix_ns: unix_ns(),
            detect_ms: millis(heard, loss.noticed),
            replay_ms: millis(loss.noticed, self.replayed),
            claim_ms: millis(self.replayed, self.granted),
            promote_ms: millis(self.granted, boottime()),
        }
    }
}
