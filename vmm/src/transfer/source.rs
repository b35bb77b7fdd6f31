//! The host that runs the VM copies it to a spare, on a thread of its own, while the guest goes on.
//!
//! The run loop of a host that is alone opens a [`Source`] and looks at it in every window. The thread admits a spare,
//! sends memory in rounds until little is left, and then asks for a [`Handover`]: the vCPU thread stands still, gives
//! what it captured, and goes on when the spare holds everything. Whether a term then begins is the run loop's to settle.
//! Nothing here claims, and nothing here touches what the guest sees.

use super::disk::{DiskSource, OwnImage};
use super::pages::{self, PageEncoder, Pages};
use super::piece;
use super::progress::Progress;
use crate::ft::wait::Waker;
use crate::kvm::KvmError;
use crate::memory::GuestRam;
use crate::state::dirty::{Page, WriteTracker};
use bytes::{BufMut, Bytes, BytesMut};
use lockstep_image::{Account, PairingId};
use lockstep_protocol::ids::{LogOffset, NodeName, Position};
use lockstep_quic::link::PairError;
use lockstep_quic::state::{StateConfig, StateDoor, StateSender};
use lockstep_staging::changes::ChangesReader;
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
/// How long a spare may take to put a round in place, after it was sent; the guest goes on meanwhile.
const ROUND_WAIT: Duration = Duration::from_secs(30);
/// How long a spare may take to hold the last pieces; the guest stands still meanwhile.
const HELD_WAIT: Duration = Duration::from_millis(500);
/// How long to wait before listening again, where this host could not.
const TRY_AGAIN: Duration = Duration::from_millis(200);
/// The guest is stopped when a round has no more pages than this: they go over in some milliseconds.
const STOP_PAGES: usize = 512;
/// And no more bytes of a mirrored disk than this.
const STOP_DISK_BYTES: u64 = 2 << 20;
/// Rounds after which it is stopped anyway: it writes faster than the connection carries.
const ROUNDS_MAX: u32 = 12;
/// So many bytes of pages make a piece.
const PIECE_BYTES: usize = 1 << 20;

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
struct Line {
    requests: SyncSender<Request>,
    attention: Attention,
    waker: Waker,
    wanted: Arc<AtomicBool>,
    progress: Arc<Progress>,
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

    fn check_wanted(&self) -> Result<(), CopyError> {
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

/// One copy under way.
struct Copying<'a> {
    line: &'a Line,
    spare: StateSender,
    memory: Arc<GuestRam>,
    writes: WriteTracker,
    encoder: PageEncoder,
    /// Pages of the next round.
    left: Vec<Page>,
    disk: Option<(DiskSource, ChangesReader)>,
}

impl<'a> Copying<'a> {
    fn begin(line: &'a Line, mut spare: StateSender, tracked: Tracked) -> Result<Self, CopyError> {
        let Tracked { memory, writes, disk } = tracked;
        let mut begun = None;
        if let Some(own) = disk {
            let account = spare.hear_account(Account::BYTES_MAX)?;
            let theirs = Account::from_bytes(&account).ok_or(CopyError::Account)?;
            let (source, changes) = DiskSource::begin(own, &theirs)?;
            line.progress.disk_begins(source.is_whole());
            spare.send(piece::DISK, source.extent())?;
            begun = Some((source, changes));
        }
        Ok(Self {
            line,
            spare,
            left: pages::all(&memory).collect(),
            memory,
            writes,
            encoder: PageEncoder::default(),
            disk: begun,
        })
    }

    /// Rounds, until what is left of one is small or does not become smaller.
    fn follow(&mut self) -> Result<(), CopyError> {
        for _ in 0..ROUNDS_MAX {
            self.round()?;
            // A spare that is behind would let the guest stand still for what it has yet to put in place.
            self.spare.send(piece::ROUND, Bytes::new())?;
            self.spare.wait_until_held(ROUND_WAIT)?;
            self.refresh()?;
            let disk_left = self.disk.as_ref().map_or(0, |(disk, _)| disk.left());
            if self.left.len() <= STOP_PAGES && disk_left <= STOP_DISK_BYTES {
                break;
            }
        }
        match &self.disk {
            Some((disk, _)) => Ok(disk.sync()?),
            None => Ok(()),
        }
    }

    /// What was written since the round that was sent last.
    fn refresh(&mut self) -> Result<(), CopyError> {
        self.left.extend(self.writes.take()?);
        self.left.sort_unstable();
        self.left.dedup();
        if let Some((disk, changes)) = &mut self.disk {
            disk.add(changes.take());
        }
        Ok(())
    }

    fn round(&mut self) -> Result<(), CopyError> {
        let disk_left = self.disk.as_ref().map_or(0, |(disk, _)| disk.left());
        self.line.progress.round(self.left.len() as u64, disk_left);
        self.send_disk()?;
        self.send_pages()
    }

    fn send_disk(&mut self) -> Result<(), CopyError> {
        let Some((disk, _)) = &mut self.disk else {
            return Ok(());
        };
        for runs in disk.announced() {
            self.spare.send(piece::ANNOUNCED, runs)?;
        }
        let mut left = disk.left();
        while let Some(bytes) = disk.next_piece()? {
            let length = bytes.len() as u64;
            self.spare.send(piece::BLOCKS, bytes)?;
            self.line.progress.disk_moved(left - disk.left(), length);
            left = disk.left();
            self.line.check_wanted()?;
        }
        Ok(())
    }

    fn send_pages(&mut self) -> Result<(), CopyError> {
        let left = std::mem::take(&mut self.left);
        let mut rest = left.iter();
        let mut counted = 0;
        loop {
            let mut out = Pages::default();
            while out.len() < PIECE_BYTES {
                let Some(page) = rest.next() else { break };
                self.encoder.encode(&self.memory, *page, &mut out);
            }
            let done = (left.len() - rest.len()) as u64;
            let bytes = out.into_bytes().freeze();
            if bytes.is_empty() {
                return Ok(());
            }
            let length = bytes.len() as u64;
            self.spare.send(piece::PAGES, bytes)?;
            self.line.progress.moved(done - counted, length);
            counted = done;
            self.line.check_wanted()?;
        }
    }

    /// The machine stands still: sends the rest of it, and waits until the spare holds all of it.
    fn finish(&mut self, captured: &Captured) -> Result<Held, CopyError> {
        self.refresh()?;
        tracing::debug!(pages = self.left.len(), "The last pages are sent");
        self.round()?;
        let pairing = self.disk.as_ref().map(|_| rand::random::<PairingId>());
        if let Some(id) = pairing {
            self.spare.send(piece::PAIRING, Bytes::copy_from_slice(&id))?;
        }
        let mut bytes = BytesMut::with_capacity(8 + captured.state.len());
        bytes.put_u64_le(captured.start.get());
        bytes.put_slice(&captured.state);
        self.spare.send(piece::MACHINE, bytes.freeze())?;
        let ack = self.spare.wait_until_held(HELD_WAIT)?;
        match (ack.upto, ack.position) == (captured.start, captured.position) {
            true => Ok(Held {
                spare: self.spare.peer().node.clone(),
                pairing,
            }),
            false => Err(CopyError::Elsewhere(ack.position)),
        }
    }
}
