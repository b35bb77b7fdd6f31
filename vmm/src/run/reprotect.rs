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
use crate::transfer::disk::OwnImage;
use crate::transfer::source::{Captured, CopyError, Handover, Held, Request, Source, Tracked};
use anyhow::Context;
use lockstep_protocol::ids::Term;
use lockstep_protocol::message;
use lockstep_protocol::session::Parting;
use lockstep_protocol::takeover::Verdict;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a spare that holds everything may take to begin the session; the guest stands still meanwhile.
const SESSION_WAIT: Duration = Duration::from_secs(2);

/// How long to wait before trying again to let spares in, where this host could not.
const LISTEN_AGAIN: Duration = Duration::from_secs(30);

/// How long the disk may take to finish what the guest has asked of it; the guest stands still meanwhile.
const DISK_WAIT: Duration = Duration::from_secs(5);

/// The search for a spare.
#[derive(Debug)]
pub(super) struct Search {
    source: Option<Source>,
    /// When to try again, where this host could not.
    again: Option<Instant>,
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
    /// Begins at once, if the VM can be copied.
    pub(super) fn wanted(host: &Host) -> Option<Self> {
        let is_mirrored = host
            .config
            .vm
            .disk
            .is_some_and(|disk| disk.mode == DiskMode::Mirror);
        if is_mirrored && host.node.disk.is_none() {
            tracing::warn!(
                "The disk of this VM is mirrored, and the configuration does not say where the image of this host lies, so no spare can get it; name it as node.{}.disk",
                host.node.name
            );
            return None;
        }
        Some(Self {
            source: None,
            again: None,
            handover: None,
        })
    }

    /// Listens for spares, if it does not yet. The VM that this host runs may be the last one: what is wrong here is said, and
    /// tried again.
    fn listen(&mut self, host: &Host, live: &Live) {
        if self.source.is_some() || self.again.is_some_and(|again| Instant::now() < again) {
            return;
        }
        match open(host, live) {
            Ok(source) => self.source = Some(source),
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "No spare can be let in, so nothing protects the VM; trying again from time to time"
                );
                self.again = Some(Instant::now() + LISTEN_AGAIN);
            }
        }
    }

    /// What the copying thread wants, seen to as far as it needs no standstill.
    fn attend(&mut self, host: &Host, ports: &[DevicePort]) -> Option<Handover> {
        match self.source.as_ref().and_then(Source::request) {
            Some(Request::Track(answer)) => {
                host.monitor.note(What::CopyBegan);
                let tracked = track(host, ports);
                // A copying thread that is gone needs no answer.
                let _ = answer.send(tracked);
            }
            Some(Request::Stop(handover)) => self.handover = Some(handover),
            None => {}
        }
        self.handover.take()
    }
}

fn open(host: &Host, live: &Live) -> anyhow::Result<Source> {
    let (ports, attention) = (live.recorder.ports(), live.recorder.attention().clone());
    let progress = Arc::clone(host.monitor.copying());
    let config = start::state_config(host, ports, message::Role::Primary, live.term, Vec::new())?;
    let others = host.config.others_of(host.node.name.as_str());
    let certificates = others.map(|node| node.certificate.clone()).collect();
    let source = Source::open(config, certificates, host.waker.clone(), attention, progress);
    source.context("Cannot start a thread")
}

/// From now on what changes is noted.
fn track(host: &Host, ports: &[DevicePort]) -> Result<Tracked, CopyError> {
    let mirrored = ports.iter().find(|port| port.is_mirrored());
    let disk = match mirrored.zip(host.node.disk.as_ref()) {
        Some((port, path)) => Some(OwnImage::open(path, port.changes())?),
        None => None,
    };
    Ok(Tracked {
        memory: Arc::clone(host.machine.memory()),
        writes: host.machine.track_writes()?,
        disk,
    })
}

impl Live {
    /// Lets spares in from now on, if one is wanted.
    pub(super) fn listen_for_spares(&mut self, host: &Host) {
        if let Some(mut search) = self.search.take() {
            search.listen(host, self);
            self.search = Some(search);
        }
    }

    /// Looks for a spare, and hands the VM over to one that is ready. Called in a window that was served.
    pub(super) fn reprotect(&mut self, host: &mut Host) -> anyhow::Result<()> {
        let Some(mut search) = self.search.take() else {
            return Ok(());
        };
        let Some(handover) = search.attend(host, self.recorder.ports()) else {
            self.search = Some(search);
            return Ok(());
        };
        let stood_still = Instant::now();
        // Nothing of a mirrored disk is in flight then: what is in the image is all that the guest has asked for.
        if !self.recorder.settle_disks(&mut host.machine, DISK_WAIT)? {
            tracing::warn!(
                "The disk of this host does not come to rest, so the copy protects nothing; look after the disk"
            );
            host.monitor.copying().forget();
            self.search = Some(search);
            return Ok(());
        }
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
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "The VM cannot be copied now"
                );
                host.monitor.copying().forget();
                self.search = Some(search);
                return Ok(());
            }
        };
        tracing::debug!(after = ?stood_still.elapsed(), "The machine is captured");
        let held = handover.finish(captured);
        tracing::debug!(after = ?stood_still.elapsed(), "A spare holds the machine");
        let paired = match held {
            Ok(held) => self.pair_with(host, &held)?,
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
    fn pair_with(&mut self, host: &mut Host, held: &Held) -> anyhow::Result<Paired> {
        let start = self.recorder.log_end();
        let peer = match host.config.node(held.spare.as_str()) {
            Ok(peer) => peer.clone(),
            Err(error) => return Ok(Paired::No(error.into())),
        };
        host.face(&peer);
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
            Ok(Verdict::Granted { term }) => {
                if let Some(id) = held.pairing {
                    self.recorder
                        .ports()
                        .iter()
                        .for_each(|port| port.begin_pairing(id));
                }
                self.begin(host, pair, term)?;
            }
            Ok(Verdict::Refused { term, holder }) => {
                return Err(host.halt(self.recorder.ports(), &holder, term));
            }
            // Whatever came of it: no record leaves, so the spare claims nothing.
            Err(error) => {
                pair.goodbye(Parting::Stopped);
                return Ok(self.stay_alone(error.into()));
            }
        }
        tracing::info!(spare = %held.spare, term = %self.term, "The VM is protected again");
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
