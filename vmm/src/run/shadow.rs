//! The run loop of a backup: it executes what the primary executed, and becomes live when the primary is lost.

use super::live::{Live, NoLog};
use super::{Ended, Host, start};
use crate::board::clock::HostClock;
use crate::ft::pair::BackupSide;
use crate::ft::port::DevicePort;
use crate::ft::record::Recorder;
use crate::ft::replay::{Replayed, Replayer};
use crate::ft::takeover::{Settled, settle};
use crate::machine::{End, Exit};
use crate::monitor::unix_ns;
use crate::status::{Role, Takeover, What};
use lockstep_protocol::ids::Term;
use lockstep_protocol::session::{Parting, PeerLost};
use lockstep_protocol::takeover::Deed;
use lockstep_staging::gate::{Mode, boottime};
use std::time::{Duration, Instant};

/// Waits for the primary and follows it.
pub(super) fn start(host: &mut Host, ports: Vec<DevicePort>) -> anyhow::Result<Ended> {
    let last = start::last_term(host)?;
    let pair = BackupSide::listen(start::link_config(host, &ports, last.term.next())?, host.context(&ports))?;
    host.monitor.note(What::PeerConnected);
    host.monitor.set_pair(Some(pair.probe()));
    host.monitor.set_role(Role::Backup, pair.term());
    let replayer = Replayer::new(Box::new(pair.source()), ports);
    Shadow { replayer, pair }.run(host)
}

/// A backup and the session it follows.
struct Shadow {
    replayer: Replayer,
    pair: BackupSide,
}

impl Shadow {
    fn run(mut self, host: &mut Host) -> anyhow::Result<Ended> {
        // Position 0: the window before the first instruction.
        let mut exit = Exit::default();
        loop {
            let end = exit.end;
            match self.replayer.window(&mut host.machine, &mut exit)? {
                Replayed::LogEnds if host.stop.is_asked() => return Ok(self.leave()),
                Replayed::LogEnds => return self.take_over(host, exit),
                Replayed::Closed => {}
            }
            host.observe();
            if let Some(end) = end {
                return Ok(Ended::Guest(end));
            }
            exit = host.machine.step()?;
        }
    }

    fn leave(self) -> Ended {
        self.pair.goodbye(Parting::Stopped);
        Ended::Stopped
    }

    /// The log is replayed to its end; the window that `exit` opened is still open. Claims, waits out the lease, and
    /// goes live in this very window.
    fn take_over(self, host: &mut Host, mut exit: Exit) -> anyhow::Result<Ended> {
        let Self { replayer, pair } = self;
        let suspected = Instant::now();
        host.monitor.note(What::Replayed);
        host.monitor.set_pair(None);
        let loss = pair.loss();
        if loss.why == PeerLost::Left(Parting::PowerOff) {
            return Ok(Ended::Guest(End::PowerOff));
        }
        if host.machine.position() == lockstep_protocol::ids::Position::ZERO {
            anyhow::bail!("The primary left before it powered the VM on ({}); start both again", loss.why);
        }
        host.monitor.set_role(Role::TakingOver, pair.term());
        let mut stages = Stages::starting(suspected);
        let mut takeover = pair.take_over();
        takeover.handle_replayed();
        let monitor = &host.monitor;
        let note = |deed: &Deed| match deed {
            Deed::Claim { .. } => monitor.note(What::Claiming),
            Deed::Promote { .. } => {
                stages.granted = Instant::now();
                monitor.note(What::Claimed);
            }
            Deed::Halt { .. } => {}
        };
        let settled = settle(&mut takeover, &mut host.seat, note, || host.stop.is_asked())?;
        match settled {
            Settled::Lives(term) => {
                let live = promote(host, replayer, &mut exit, term, loss.heard_ago());
                host.monitor.set_takeover(stages.done(&loss));
                run_from_open_window(host, live, exit)
            }
            Settled::Stopped => Ok(Ended::Stopped),
            Settled::Halts { by, term } => Err(host.halt(replayer.ports(), &by, term)),
        }
    }
}

/// Opens the gates and orders what the lost primary left undone.
fn promote(host: &mut Host, replayer: Replayer, exit: &mut Exit, term: Term, heard_ago: Duration) -> Live {
    let ports = replayer.into_ports();
    ports.iter().for_each(DevicePort::go_live_alone);
    let clock = HostClock::resumed(host.machine.time(), heard_ago);
    let mut recorder = Recorder::new(Box::new(NoLog::from(host.log_end())), ports, clock, host.waker.clone());
    // What was kicked in this very window is in flight like everything else: order it once.
    exit.kick = None;
    recorder.reissue(&host.machine);
    host.monitor.note(What::Live);
    host.monitor.set_role(Role::Alone, term);
    Live { recorder, pair: None, term }
}

fn run_from_open_window(host: &mut Host, mut live: Live, mut exit: Exit) -> anyhow::Result<Ended> {
    match live.window(host, &mut exit)? {
        Some(ended) => Ok(ended),
        None => live.run(host),
    }
}
