//! What a local user wants of the vCPU thread: a snapshot. The control thread asks here and waits; the run loop of the
//! host that talks to the outside looks in every window. One errand at a time; nothing here does one.

use crate::ft::wait::Waker;
use crate::state::snapshot::Draft;
use lockstep_protocol::ids::Position;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long the vCPU thread may take to come to a window and write: for memory of some GiB on a slow disk.
const WRITE_WAIT: Duration = Duration::from_secs(300);

/// A snapshot that was written.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Where the machine stood.
    pub position: Position,
    /// Bytes of the file.
    pub bytes: u64,
    /// How long the guest stood still.
    pub stood_still: Duration,
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum ErrandError {
    /// One at a time.
    #[error("A snapshot is being written already; wait for it")]
    Busy,
    /// The guest makes no exits, or the disk is very slow.
    #[error("The guest came to no window in which a snapshot can be taken")]
    NoWindow,
    /// The run ended.
    #[error("The node stopped before the snapshot was taken")]
    Stopped,
    /// The disk does not take it.
    #[error("Cannot write the snapshot")]
    Write(#[from] io::Error),
    /// KVM does not tell what the machine is.
    #[error("The machine cannot be captured: {0}")]
    Capture(String),
}

/// The draft that goes along, and the way back.
#[derive(Debug)]
pub struct Errand {
    /// Where to write.
    pub draft: Draft,
    answer: SyncSender<Answer>,
}

/// The draft comes back with what became of it.
type Answer = (Draft, Result<Taken, ErrandError>);

impl Errand {
    /// Done, or not to be done.
    pub fn answer(self, result: Result<Taken, ErrandError>) {
        // Who does not wait any more needs no answer; the draft goes with it.
        let _ = self.answer.send((self.draft, result));
    }
}

/// Where errands wait; shared between threads.
#[derive(Clone, Debug)]
pub struct Errands {
    shared: Arc<Shared>,
    waker: Waker,
}

#[derive(Debug, Default)]
struct Shared {
    /// Looked at in every window, so it is cheap.
    wanted: AtomicBool,
    errand: Mutex<Option<Errand>>,
}

impl Errands {
    /// None yet; `waker` ends the vCPU thread's sleep when there is one.
    #[must_use]
    pub fn new(waker: Waker) -> Self {
        Self {
            shared: Arc::default(),
            waker,
        }
    }

    /// Has the machine written to `draft`, waits for that, and gives the file its name.
    ///
    /// # Errors
    /// When the machine cannot be captured in time, or the disk does not take it.
    pub fn snapshot(&self, draft: Draft) -> Result<Taken, ErrandError> {
        let answers = self.put(draft)?;
        match answers.recv_timeout(WRITE_WAIT) {
            Ok((draft, result)) => {
                let taken = result?;
                draft.finish()?;
                Ok(taken)
            }
            Err(RecvTimeoutError::Timeout) => {
                drop(self.take());
                Err(ErrandError::NoWindow)
            }
            Err(RecvTimeoutError::Disconnected) => Err(ErrandError::Stopped),
        }
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.shared.wanted.load(Ordering::Acquire)
    }

    /// The errand, to be answered or put back.
    #[must_use]
    pub fn take(&self) -> Option<Errand> {
        if !self.is_wanted() {
            return None;
        }
        let mut slot = self.shared.errand.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.wanted.store(false, Ordering::Release);
        slot.take()
    }

    /// Not in this window.
    pub fn put_back(&self, errand: Errand) {
        let mut slot = self.shared.errand.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = Some(errand);
        self.shared.wanted.store(true, Ordering::Release);
    }

    fn put(&self, draft: Draft) -> Result<Receiver<Answer>, ErrandError> {
        let mut slot = self.shared.errand.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_some() {
            return Err(ErrandError::Busy);
        }
        let (answer, answers) = sync_channel(1);
        *slot = Some(Errand { draft, answer });
        self.shared.wanted.store(true, Ordering::Release);
        self.waker.wake();
        Ok(answers)
    }
}
