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
use lockstep_quic::link::PairError;
use lockstep_quic::state::{StateConfig, StateDoor, StateSender};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

/// How long to wait for a spare before looking whether one is still wanted.
const LOOK: Duration = Duration::from_millis(100);
/// How long the other thread may take to answer: many times what a window takes.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// How long to wait before listening again, where this host could not.
const TRY_AGAIN: Duration = Duration::from_millis(200);

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
    /// Listens for spares, as soon as the address is free. `waker` ends the vCPU thread's sleep when something is wanted
    /// of it.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn open(
        config: StateConfig,
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
            .spawn(move || line.listen(&config))?;
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
    fn listen(&self, config: &StateConfig) {
        while self.is_wanted() {
            match StateDoor::open(config.clone()) {
                Ok(door) => self.serve(&door),
                Err(error) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "Cannot listen for spares yet"
                    );
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

    /// Admits one spare after the other. The run loop wants none any more when one protects the VM.
    fn serve(&self, door: &StateDoor) {
        while self.is_wanted() {
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
