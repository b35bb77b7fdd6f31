//! What a local user wants of the vCPU thread: a snapshot. The control thread asks here and waits; the run loop of the
//! host that talks to the outside looks in every window, and closes it when the run is over. One errand at a time; nothing
//! here does one.

use crate::ft::wait::Waker;
use crate::state::snapshot::Draft;
use lockstep_protocol::ids::Position;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long the vCPU thread may take to come to a window and write: for memory of some GiB on a slow disk.
const WRITE_WAIT: Duration = Duration::from_secs(300);
/// How long the end of a run waits for a snapshot that is written but not yet safe on the disk under its name.
const FINISH_WAIT: Duration = Duration::from_secs(30);

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
    slot: Mutex<Slot>,
    /// Nobody waits for an errand any more.
    settled: Condvar,
}

#[derive(Debug, Default)]
struct Slot {
    errand: Option<Errand>,
    /// Somebody waits for an errand, or gives the file its name.
    is_under_way: bool,
    /// The run is over.
    is_closed: bool,
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
    /// When the machine cannot be captured in time, the run ends, or the disk does not take it.
    pub fn snapshot(&self, draft: Draft) -> Result<Taken, ErrandError> {
        let answers = self.put(draft)?;
        // Declared before the draft comes back: settled when that is gone or has its name.
        let _under_way = UnderWay(&self.shared);
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
        let mut slot = self.shared.slot();
        self.shared.wanted.store(false, Ordering::Release);
        slot.errand.take()
    }

    /// Not in this window.
    pub fn put_back(&self, errand: Errand) {
        let mut slot = self.shared.slot();
        // Who asked for it may have given up meanwhile; the next one's errand stays.
        if slot.is_under_way && !slot.is_closed && slot.errand.is_none() {
            slot.errand = Some(errand);
            self.shared.wanted.store(true, Ordering::Release);
        }
    }

    /// The run is over: an errand that waits is not done, and leaves no file. One that was done gets its name before this
    /// returns, as far as the disk is not very slow.
    pub fn close(&self) {
        let mut slot = self.shared.slot();
        slot.is_closed = true;
        self.shared.wanted.store(false, Ordering::Release);
        // Who waits for it is told by its end.
        drop(slot.errand.take());
        let is_under_way = |slot: &mut Slot| slot.is_under_way;
        // A disk that takes longer leaves a draft behind, under a name of its own.
        drop(
            self.shared
                .settled
                .wait_timeout_while(slot, FINISH_WAIT, is_under_way),
        );
    }

    fn put(&self, draft: Draft) -> Result<Receiver<Answer>, ErrandError> {
        let mut slot = self.shared.slot();
        if slot.is_closed {
            return Err(ErrandError::Stopped);
        }
        if slot.is_under_way {
            return Err(ErrandError::Busy);
        }
        let (answer, answers) = sync_channel(1);
        slot.errand = Some(Errand { draft, answer });
        slot.is_under_way = true;
        self.shared.wanted.store(true, Ordering::Release);
        self.waker.wake();
        Ok(answers)
    }
}

impl Shared {
    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody waits for an errand for as long as this lives.
struct UnderWay<'a>(&'a Shared);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.slot().is_under_way = false;
        self.0.settled.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;
    use std::thread::{self, JoinHandle};

    const TAKEN: Taken = Taken {
        position: Position::ZERO,
        bytes: 0,
        stood_still: Duration::ZERO,
    };

    fn errands() -> Errands {
        Errands::new(Waker::new().unwrap())
    }

    /// Somebody who has asked for a snapshot in `folder` and waits for it.
    fn ask(errands: &Errands, folder: &Path) -> JoinHandle<Result<Taken, ErrandError>> {
        let (asked, draft) = (
            errands.clone(),
            Draft::begin(&folder.join("vm.snapshot")).unwrap(),
        );
        let waiter = thread::spawn(move || asked.snapshot(draft));
        while !errands.is_wanted() {
            thread::yield_now();
        }
        waiter
    }

    fn files(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn the_end_of_the_run_is_told_to_who_waits_for_a_snapshot_and_leaves_no_file() {
        let (errands, folder) = (errands(), tempfile::tempdir().unwrap());
        let waiter = ask(&errands, folder.path());

        errands.close();

        assert_eq!(files(folder.path()), [""; 0]);
        assert!(matches!(waiter.join().unwrap(), Err(ErrandError::Stopped)));
    }

    #[test]
    fn a_snapshot_that_was_written_has_its_name_before_the_run_ends() {
        let (errands, folder) = (errands(), tempfile::tempdir().unwrap());
        let waiter = ask(&errands, folder.path());

        errands.take().unwrap().answer(Ok(TAKEN));
        errands.close();

        assert_eq!(files(folder.path()), ["vm.snapshot"]);
        assert!(waiter.join().unwrap().is_ok());
    }

    #[test]
    fn who_asks_after_the_end_is_told_at_once() {
        let (errands, folder) = (errands(), tempfile::tempdir().unwrap());
        errands.close();

        let draft = Draft::begin(&folder.path().join("vm.snapshot")).unwrap();
        assert!(matches!(errands.snapshot(draft), Err(ErrandError::Stopped)));
        assert_eq!(files(folder.path()), [""; 0]);
    }

    #[test]
    fn an_errand_that_no_window_suits_before_the_end_is_not_put_back() {
        let (errands, folder) = (errands(), tempfile::tempdir().unwrap());
        let waiter = ask(&errands, folder.path());
        let errand = errands.take().unwrap();
        let ending = thread::spawn({
            let errands = errands.clone();
            move || errands.close()
        });
        while !errands.shared.slot().is_closed {
            thread::yield_now();
        }

        errands.put_back(errand);

        ending.join().unwrap();
        assert!(!errands.is_wanted());
        assert!(matches!(waiter.join().unwrap(), Err(ErrandError::Stopped)));
        assert_eq!(files(folder.path()), [""; 0]);
    }

    #[test]
    fn a_second_snapshot_waits_for_the_first() {
        let (errands, folder) = (errands(), tempfile::tempdir().unwrap());
        let waiter = ask(&errands, folder.path());
        let errand = errands.take().unwrap();

        let second = Draft::begin(&folder.path().join("second.snapshot")).unwrap();
        assert!(matches!(errands.snapshot(second), Err(ErrandError::Busy)));

        errand.answer(Ok(TAKEN));
        assert!(waiter.join().unwrap().is_ok());
    }
}
