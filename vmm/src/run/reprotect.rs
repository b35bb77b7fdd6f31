//! A host that is alone protects itself again: it lets a spare in, copies the VM to it while the guest runs, and begins
//! a new term with it.
//!
//! [`Live`] looks here in every window. The guest stands still once, for the last pages. The order of what is done then
//! keeps I13: outputs wait first, then the spare listens, then the term is claimed, then the log begins. A spare that
//! has no record of the log claims nothing, so up to there this host can go on alone whatever happens.

use super::live::Live;
use super::{Host, start};
use crate::config::DiskMode;
use crate::ft::pair::PrimarySide;
use crate::ft::port::DevicePort;
use crate::machine::CaptureError;
use crate::status::{Role, What};
use crate::transfer::source::{Captured, Handover, Request, Source, Tracked};
use anyhow::Context;
use lockstep_protocol::ids::{NodeName, Term};
use lockstep_protocol::message;
use lockstep_protocol::session::Parting;
use lockstep_protocol::takeover::Verdict;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a spare that holds everything may take to begin the session; the guest stands still meanwhile.
const SESSION_WAIT: Duration = Duration::from_secs(2);

/// The search for a spare.
#[derive(Debug)]
pub(super) struct Search {
    source: Option<Source>,
    /// Waits for a window in which the machine can be captured.
    handover: Option<Handover>,
}

/// What came of a spare that holds everything.
enum Paired {
    /// It protects the VM.
    Yes,
    /// It does not; this host goes on alone.
    No(anyhow::Error),
}

impl Search {
    /// Begins at once, if the VM can be copied: a mirrored disk cannot, yet.
    pub(super) fn wanted(host: &Host) -> Option<Self> {
        let is_mirrored = host
            .config
            .vm
            .disk
            .is_some_and(|disk| disk.mode == DiskMode::Mirror);
        (!is_mirrored).then(|| Self {
            source: None,
            handover: None,
        })
    }

    /// Listens for spares, if it does not yet.
    fn listen(&mut self, host: &Host, live: &Live) -> anyhow::Result<()> {
        if self.source.is_none() {
            let attention = live.recorder.attention().clone();
            let progress = Arc::clone(host.monitor.copying());
            let config = start::state_config(host, live.recorder.ports(), message::Role::Primary, live.term)?;
            let source = Source::open(config, host.waker.clone(), attention, progress);
            self.source = Some(source.context("Cannot start a thread")?);
        }
        Ok(())
    }

    /// What the copying thread wants, seen to as far as it needs no standstill.
    fn attend(&mut self, host: &Host) -> Option<Handover> {
        match self.source.as_ref().and_then(Source::request) {
            Some(Request::Track(answer)) => {
                host.monitor.note(What::CopyBegan);
                let tracked = host.machine.track_writes().map(|writes| Tracked {
                    memory: Arc::clone(host.machine.memory()),
                    writes,
                });
                // A copying thread that is gone needs no answer.
                let _ = answer.send(tracked);
            }
            Some(Request::Stop(handover)) => self.handover = Some(handover),
            None => {}
        }
        self.handover.take()
    }
}

impl Live {
    /// Looks for a spare, and hands the VM over to one that is ready. Called in a window that was served.
    pub(super) fn reprotect(&mut self, host: &mut Host) -> anyhow::Result<()> {
        let Some(mut search) = self.search.take() else {
            return Ok(());
        };
        search.listen(host, self)?;
        let Some(handover) = search.attend(host) else {
            self.search = Some(search);
            return Ok(());
        };
        let stood_still = Instant::now();
        let captured = match host.machine.capture() {
            Ok(state) => Captured {
                position: state.position(),
                state: state.encode(),
                start: self.recorder.log_end(),
            },
            Err(CaptureError::NotStarted | CaptureError::InPieces) => {
                search.handover = Some(handover);
                self.search = Some(search);
                return Ok(());
            }
            Err(error) => return Err(error).context("The VM cannot be copied"),
        };
        tracing::debug!(after = ?stood_still.elapsed(), "The machine is captured");
        let held = handover.finish(captured);
        tracing::debug!(after = ?stood_still.elapsed(), "A spare holds the machine");
        let paired = match held {
            Ok(spare) => self.pair_with(host, &spare)?,
            Err(error) => Paired::No(error.into()),
        };
        match paired {
            Paired::Yes => host.monitor.copying().end(stood_still.elapsed()),
            Paired::No(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "The copy protects nothing; the next spare is waited for"
                );
                host.monitor.copying().forget();
                self.search = Some(search);
            }
        }
        Ok(())
    }

    /// Begins a term with a spare that holds everything.
    fn pair_with(&mut self, host: &mut Host, spare: &NodeName) -> anyhow::Result<Paired> {
        let start = self.recorder.log_end();
        for port in self.recorder.ports() {
            port.gate().await_backup(start);
        }
        let connected =
            start::next_pair_config(host, self.recorder.ports(), message::Role::Primary, self.term).and_then(
                |mut config| {
                    config.hello.start = start;
                    config.patience = SESSION_WAIT;
                    Ok(PrimarySide::connect(config, host.context(self.recorder.ports()))?)
                },
            );
        let pair = match connected {
            Ok(pair) => pair,
            Err(error) => return Ok(self.stay_alone(error)),
        };
        tracing::debug!("Claiming");
        match host.seat.claim(self.term) {
            Ok(Verdict::Granted { term }) => self.begin(host, pair, term)?,
            Ok(Verdict::Refused { term, holder }) => {
                return Err(host.halt(self.recorder.ports(), &holder, term));
            }
            // Whatever came of it: no record leaves, so the spare claims nothing.
            Err(error) => {
                pair.goodbye(Parting::Stopped);
                return Ok(self.stay_alone(error.into()));
            }
        }
        tracing::info!(%spare, term = %self.term, "The VM is protected again");
        Ok(Paired::Yes)
    }

    fn begin(&mut self, host: &mut Host, pair: PrimarySide, term: Term) -> anyhow::Result<()> {
        self.term = term;
        self.recorder.set_sink(Box::new(pair.sink()));
        host.monitor.set_pair(Some(pair.probe()));
        self.pair = Some(pair);
        if let Err(error) = self.recorder.begin_log(&mut host.machine) {
            return self.survive(host, error);
        }
        host.monitor.note(What::PeerConnected);
        host.monitor.set_role(Role::Primary, term);
        host.monitor.note(What::Protected);
        Ok(())
    }

    fn stay_alone(&self, why: anyhow::Error) -> Paired {
        self.recorder.ports().iter().for_each(DevicePort::go_live_alone);
        Paired::No(why)
    }
}
