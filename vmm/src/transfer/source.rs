//! The host that runs the VM copies it to a spare, on a thread of its own, while the guest goes on.
//!
//! The run loop of a host that is alone opens a [`Source`] and looks at it in every window. The thread admits a spare,
//! sends memory in rounds until little is left, and then asks for a [`Handover`]: the vCPU thread stands still, gives
//! what it captured, and goes on when the spare holds everything. Whether a term then begins is the run loop's to settle.
//! Nothing here claims, and nothing here touches what the guest sees.

use super::copying::Copying;
use super::disk::OwnImage;
use super::progress::Progress;
use crate::ft::wait::Waker;
use crate::kvm::KvmError;
use crate::memory::GuestRam;
use crate::state::dirty::WriteTracker;
use lockstep_image::PairingId;
use lockstep_protocol::ids::{LogOffset, NodeName, Position};
use lockstep_quic::failure::whole_sentence;
use lockstep_quic::identity::PinnedPeer;
use lockstep_quic::link::PairError;
use lockstep_quic::state::{StateConfig, StateDoor, StateSender};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long to wait for a spare before looking whether one is still wanted.
const LOOK: Duration = Duration::from_millis(100);
/// How long the other thread may take to answer: many times what a window takes.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// How long to wait before listening again, where this host could not.
const TRY_AGAIN: Duration = Duration::from_millis(200);
/// How long to wait before looking again for certificates that could not be read.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long it may be unable to before that is said: the session that has just ended needs a moment to leave the address.
const HUSH: Duration = Duration::from_secs(2);

/// Raised while the copying thread wants something of the vCPU thread, which looks at it in every window.
#[derive(Clone, Debug, Default)]
pub struct Attention(Arc<AtomicBool>);

impl Attention {
    /// Whether something is wanted.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Why a copy did not come about. The VM goes on as it was.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The spare is gone, or broke the rules.
    #[error(transparent)]
    Spare(#[from] PairError),
    /// KVM does not tell what the guest writes.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The own image.
    #[error("The disk image of this host cannot be read")]
    Image(#[from] io::Error),
    /// What the spare says of its image.
    #[error("What the spare says of its disk image makes no sense")]
    Account,
    /// The spare says that it holds something else.
    #[error("The spare says that it holds the VM at position {0}, which is not where it stands")]
    Elsewhere(Position),
    /// The two threads lost each other: the VM is over.
    #[error("The VM stopped while it was copied")]
    Over,
}

/// What the copying thread wants.
#[derive(Debug)]
pub enum Request {
    /// To know what is written from now on.
    Track(SyncSender<Result<Tracked, CopyError>>),
    /// The VM to stand still.
    Stop(Handover),
}

/// A VM whose writes are noted.
#[derive(Debug)]
pub struct Tracked {
    /// Its memory.
    pub memory: Arc<GuestRam>,
    /// What was written.
    pub writes: WriteTracker,
    /// Its mirrored disk, if it has one.
    pub disk: Option<OwnImage>,
}

/// A spare that holds all of a machine that stands still.
#[derive(Debug)]
pub struct Held {
    /// Who.
    pub spare: NodeName,
    /// The pairing that begins for the images of a mirrored disk.
    pub pairing: Option<PairingId>,
}

/// What a machine that stands still is, apart from its memory.
#[derive(Debug)]
pub struct Captured {
    /// The encoded state.
    pub state: Vec<u8>,
    /// Where the log will begin.
    pub start: LogOffset,
    /// Where the machine stands.
    pub position: Position,
}

/// The moment in which the machine stands still.
#[derive(Debug)]
pub struct Handover {
    captured: SyncSender<Captured>,
    held: Receiver<Result<Held, CopyError>>,
}

impl Handover {
    /// Gives what was captured and waits until a spare holds all of the machine: which one.
    ///
    /// # Errors
    /// When none does.
    pub fn finish(self, captured: Captured) -> Result<Held, CopyError> {
        self.captured.send(captured).map_err(|_| CopyError::Over)?;
        match self.held.recv_timeout(ANSWER_WAIT) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(CopyError::Over),
        }
    }
}

/// The vCPU thread's end.
#[derive(Debug)]
pub struct Source {
    requests: Receiver<Request>,
    attention: Attention,
    wanted: Arc<AtomicBool>,
}

/// The copying thread's end.
pub(super) struct Line {
    requests: SyncSender<Request>,
    attention: Attention,
    waker: Waker,
    wanted: Arc<AtomicBool>,
    pub(super) progress: Arc<Progress>,
}

impl Source {
    /// Listens for spares, as soon as the address is free: those that `config` knows, and those whose `certificates` can be
    /// read, now or later. `waker` ends the vCPU thread's sleep when something is wanted of it.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn open(
        config: StateConfig,
        certificates: Vec<PathBuf>,
        waker: Waker,
        attention: Attention,
        progress: Arc<Progress>,
    ) -> io::Result<Self> {
        let (ask, requests) = sync_channel(1);
        let wanted = Arc::new(AtomicBool::new(true));
        let line = Line {
            requests: ask,
            attention: attention.clone(),
            waker,
            wanted: Arc::clone(&wanted),
            progress,
        };
        thread::Builder::new()
            .name("copy".into())
            .spawn(move || line.listen(&config, &certificates))?;
        Ok(Self {
            requests,
            attention,
            wanted,
        })
    }

    /// What the copying thread wants, if it wants something.
    pub fn request(&self) -> Option<Request> {
        if !self.attention.is_wanted() {
            return None;
        }
        self.attention.0.store(false, Ordering::Release);
        self.requests.try_recv().ok()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.wanted.store(false, Ordering::Release);
    }
}

impl Line {
    /// Until no spare is wanted any more.
    fn listen(&self, config: &StateConfig, certificates: &[PathBuf]) {
        let mut obstacle = Obstacle::default();
        let mut told = String::new();
        while self.is_wanted() {
            let (config, missing) = with_peers(config, certificates);
            if missing != told {
                tell_missing(&missing);
            }
            let until = (!missing.is_empty()).then(|| Instant::now() + LOOK_AGAIN);
            told = missing;
            match StateDoor::open(config.clone()) {
                Ok(door) => {
                    if obstacle.is_told {
                        tracing::info!(at = %config.address, "Spares are let in now");
                    }
                    obstacle = Obstacle::default();
                    self.serve(&door, until);
                }
                Err(error) => {
                    let error = whole_sentence(&error);
                    if obstacle.is_to_be_told(&error, Instant::now()) {
                        tracing::warn!(
                            error,
                            "No spare can be let in, so nothing protects the VM; trying again until one can"
                        );
                    }
                    thread::sleep(TRY_AGAIN);
                }
            }
        }
    }

    fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire)
    }

    pub(super) fn check_wanted(&self) -> Result<(), CopyError> {
        match self.is_wanted() {
            true => Ok(()),
            false => Err(CopyError::Over),
        }
    }

    /// Admits one spare after the other, for so long. The run loop wants none any more when one protects the VM.
    fn serve(&self, door: &StateDoor, until: Option<Instant>) {
        while self.is_wanted() && until.is_none_or(|until| Instant::now() < until) {
            let Some(spare) = door.admit(LOOK) else { continue };
            self.progress.begin();
            match self.copy(spare) {
                Ok(()) => {}
                Err(CopyError::Over) => return self.progress.forget(),
                Err(error) => {
                    self.progress.forget();
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "A copy failed; the next spare is waited for"
                    );
                }
            }
        }
    }

    fn copy(&self, spare: StateSender) -> Result<(), CopyError> {
        let (answer, tracked) = sync_channel(1);
        self.ask(Request::Track(answer))?;
        let tracked = tracked.recv_timeout(ANSWER_WAIT).map_err(|_| CopyError::Over)??;
        let mut copying = Copying::begin(self, spare, tracked)?;
        copying.follow()?;
        tracing::debug!(pages = copying.left.len(), "The VM is asked to stand still");
        let (give, captured) = sync_channel(1);
        let (tell, held) = sync_channel(1);
        self.ask(Request::Stop(Handover { captured: give, held }))?;
        let captured: Captured = captured.recv_timeout(ANSWER_WAIT).map_err(|_| CopyError::Over)?;
        let outcome = copying.finish(&captured);
        // Before the log begins: from then on nothing but the log may tell how the machine runs.
        drop(copying);
        tell.send(outcome).map_err(|_| CopyError::Over)
    }

    fn ask(&self, request: Request) -> Result<(), CopyError> {
        self.requests.send(request).map_err(|_| CopyError::Over)?;
        self.attention.0.store(true, Ordering::Release);
        self.waker.wake();
        Ok(())
    }
}

/// Who may come, and why not everybody may: the certificates of hosts that were never needed here yet may not lie here.
fn with_peers(config: &StateConfig, certificates: &[PathBuf]) -> (StateConfig, String) {
    let (mut config, mut missing) = (config.clone(), Vec::new());
    for path in certificates {
        match PinnedPeer::load(path) {
            Ok(peer) => config.peers.push(peer),
            Err(error) => missing.push(whole_sentence(&error)),
        }
    }
    (config, missing.join("; "))
}

fn tell_missing(missing: &str) {
    match missing {
        "" => tracing::info!("Every spare can be let in now"),
        error => tracing::warn!(
            error,
            "Not every spare can be let in; looking again from time to time"
        ),
    }
}

/// Why this host cannot listen. It is told once, and again when it is something else.
#[derive(Debug, Default)]
struct Obstacle {
    what: String,
    since: Option<Instant>,
    is_told: bool,
}

impl Obstacle {
    /// Whether the time has come to tell `what` is in the way now.
    fn is_to_be_told(&mut self, what: &str, now: Instant) -> bool {
        if self.what != what {
            *self = Self {
                what: what.into(),
                since: Some(now),
                is_told: false,
            };
        }
        let lasts = |since| now.saturating_duration_since(since) >= HUSH;
        let is_due = !self.is_told && self.since.is_some_and(lasts);
        self.is_told |= is_due;
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN_USE: &str = "Another process already uses the address";

    #[test]
    fn an_address_that_the_last_session_still_leaves_is_nothing_to_tell() {
        let (mut obstacle, begun) = (Obstacle::default(), Instant::now());
        assert!(!obstacle.is_to_be_told(IN_USE, begun));
        assert!(!obstacle.is_to_be_told(IN_USE, begun + HUSH / 2));
    }

    #[test]
    fn an_address_that_stays_taken_is_told_once() {
        let (mut obstacle, begun) = (Obstacle::default(), Instant::now());
        obstacle.is_to_be_told(IN_USE, begun);
        assert!(obstacle.is_to_be_told(IN_USE, begun + HUSH));
        assert!(!obstacle.is_to_be_told(IN_USE, begun + HUSH + TRY_AGAIN));
        assert!(!obstacle.is_to_be_told(IN_USE, begun + 100 * HUSH));
    }

    #[test]
    fn another_obstacle_is_told_too() {
        let (mut obstacle, begun) = (Obstacle::default(), Instant::now());
        obstacle.is_to_be_told(IN_USE, begun);
        obstacle.is_to_be_told(IN_USE, begun + HUSH);
        assert!(!obstacle.is_to_be_told("The address is none of this host", begun + HUSH));
        assert!(obstacle.is_to_be_told("The address is none of this host", begun + 2 * HUSH));
    }
}
