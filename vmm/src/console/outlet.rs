//! Standard output behind a bounded queue, for the guest's console: a thread of its own writes what the run loop puts in.
//!
//! The run loop never waits here. A pipe that nobody reads, or a terminal that somebody stopped, holds up the thread alone,
//! and what does not fit into the queue is lost.

use super::{ConsoleError, lock, start};
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What may wait for the reader: more than a boot of Linux prints.
const QUEUE_MAX: usize = 64 << 10;
/// How long the end of the process waits for a reader that is behind.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The run loop's end. Dropped, it lets what still waits come out, for a moment.
#[derive(Debug)]
pub struct Outlet(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<u8>,
    /// Bytes that did not fit behind the ones that wait.
    lost: usize,
    is_writing: bool,
    is_closed: bool,
}

impl Outlet {
    /// Whatever is printed goes to `out`, as fast as that takes it.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn open(out: impl Write + Send + 'static) -> Result<Self, ConsoleError> {
        let shared = Arc::<Shared>::default();
        let drained = Arc::clone(&shared);
        start(move || drained.drain(out))?;
        Ok(Self(shared))
    }

    /// The guest printed `bytes`.
    pub(super) fn print(&self, bytes: &[u8]) {
        let mut queue = lock(&self.0.queue);
        let fitting = bytes.len().min(QUEUE_MAX - queue.waiting.len());
        queue.waiting.extend_from_slice(&bytes[..fitting]);
        queue.lost += bytes.len() - fitting;
        drop(queue);
        self.0.changed.notify_all();
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        let mut queue = lock(&self.0.queue);
        queue.is_closed = true;
        self.0.changed.notify_all();
        let is_busy = |queue: &mut Queue| queue.is_writing || !queue.waiting.is_empty();
        // Whoever does not read by then does not see the last words.
        drop(self.0.changed.wait_timeout_while(queue, LAST_WORDS, is_busy));
    }
}

impl Shared {
    /// Until the outlet is closed and empty.
    fn drain(&self, mut out: impl Write) {
        while let Some((bytes, lost)) = self.next() {
            if lost > 0 {
                // Said here and not where it was lost: the log may go to the same terminal.
                tracing::warn!(
                    bytes = lost,
                    "Standard output was not read for a while, so some of what the guest printed is lost"
                );
            }
            // Nobody who reads any more: the guest goes on all the same.
            let _ = out.write_all(&bytes).and_then(|()| out.flush());
        }
    }

    /// What waits, once something does, and how many bytes are lost behind it.
    fn next(&self) -> Option<(Vec<u8>, usize)> {
        let mut queue = lock(&self.queue);
        queue.is_writing = false;
        self.changed.notify_all();
        let is_idle = |queue: &mut Queue| queue.waiting.is_empty() && !queue.is_closed;
        let waited = self.changed.wait_while(queue, is_idle);
        let mut queue: MutexGuard<'_, Queue> = waited.unwrap_or_else(PoisonError::into_inner);
        if queue.waiting.is_empty() {
            return None;
        }
        queue.is_writing = true;
        Some((
            std::mem::take(&mut queue.waiting),
            std::mem::take(&mut queue.lost),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::ioctl_fionbio;
    use std::io::{self, BufReader, PipeReader, PipeWriter, Read};

    /// Several times what the thread and the queue hold.
    const MUCH: usize = 1 << 20;

    fn print_much(outlet: &Outlet) {
        (0..MUCH >> 10).for_each(|_| outlet.print(&[b'x'; 1 << 10]));
    }

    /// A pipe that takes no more before somebody reads.
    fn full_pipe() -> (PipeReader, PipeWriter) {
        let (reader, mut writer) = io::pipe().unwrap();
        ioctl_fionbio(&writer, true).unwrap();
        while writer.write(&[b'.'; 1 << 10]).is_ok() {}
        ioctl_fionbio(&writer, false).unwrap();
        (reader, writer)
    }

    #[test]
    fn a_pipe_that_nobody_reads_holds_up_neither_the_guest_nor_the_end_and_loses_what_does_not_fit() {
        let (mut reader, writer) = full_pipe();
        let outlet = Outlet::open(writer).unwrap();

        print_much(&outlet);
        drop(outlet);

        let mut shown = Vec::new();
        reader.read_to_end(&mut shown).unwrap();
        let printed = shown.iter().filter(|byte| **byte == b'x').count();
        assert!((QUEUE_MAX..MUCH).contains(&printed), "{printed}");
    }

    #[test]
    fn who_reads_again_sees_what_is_printed_from_then_on() {
        let (reader, writer) = full_pipe();
        let outlet = Outlet::open(writer).unwrap();
        print_much(&outlet);

        let mut shown = BufReader::new(reader).bytes().map(Result::unwrap);

        assert!(shown.any(|byte| {
            outlet.print(b"!");
            byte == b'!'
        }));
    }

    #[test]
    fn what_was_printed_right_before_the_end_comes_out() {
        let paper = Paper::default();
        let outlet = Outlet::open(paper.clone()).unwrap();

        outlet.print(b"power off\n");
        drop(outlet);

        assert_eq!(*lock(&paper.0), b"power off\n");
    }

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
