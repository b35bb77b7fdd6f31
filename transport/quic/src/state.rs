//! The connection over which a running VM is copied to a new backup: beside the pair's own, so that bulk delays nothing.
//!
//! A spare dials every host that may run the VM ([`StateReceiver::dial`]); a host that runs it unprotected listens
//! ([`StateDoor`]) and sends pieces ([`StateSender`]). Blocking calls for two threads of the VMM; the QUIC work is done
//! by one thread of its own. What a piece means is the VMM's business. Nothing here claims a term or begins a log.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lockstep_protocol::{Ack, Hello, LogOffset, Message, Term};
use quinn::{Connection, RecvStream, SendStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::config::{LinkConfig, MAX_HANDSHAKES};
use crate::endpoint::{Arrival, PinnedEndpoint};
use crate::failure::LinkError;
use crate::identity::{Identity, PinnedPeer};
use crate::link::PairError;
use crate::pinning::Pins;
use crate::session::{judge, refuse, within};
use crate::streams::{
    MessageReader, MessageWriter, StreamFault, StreamKind, accept_control, accept_only, open, open_control,
    whole_sentence,
};

/// How long one attempt to reach a host may take.
const ATTEMPT: Duration = Duration::from_millis(500);
/// How long a recognised peer may take for each step.
const STEP_WAIT: Duration = Duration::from_secs(5);
/// The longest piece: bounds what the receiver takes into memory for one.
pub const PIECE_MAX: usize = 4 << 20;
/// The code of a connection that is closed because nothing more is to be said.
const CLOSED_DONE: u32 = 3;

/// Who copies to whom.
#[derive(Clone, Debug)]
pub struct StateConfig {
    /// Where the host that runs the VM listens.
    pub address: SocketAddr,
    /// Who we are.
    pub identity: Identity,
    /// Whom we accept.
    pub peers: Vec<PinnedPeer>,
    /// What must be equal on both hosts. A spare knows no term and no start of a log; it takes those of the other side.
    pub hello: Hello,
}

/// Where spares knock.
#[derive(Debug)]
pub struct StateDoor {
    endpoint: PinnedEndpoint,
    hello: Hello,
    greeted: Mutex<JoinSet<Result<Greeted, PairError>>>,
    runtime: Arc<Runtime>,
}

impl StateDoor {
    /// Listens.
    ///
    /// # Errors
    /// When the address or our certificate cannot be used.
    pub fn open(config: StateConfig) -> Result<Self, PairError> {
        let runtime = runtime()?;
        let _inside = runtime.enter();
        let pins = Pins::new(config.peers);
        let endpoint = PinnedEndpoint::listen(config.address, config.identity, pins, LinkConfig::state())?;
        Ok(Self {
            endpoint,
            hello: config.hello,
            greeted: Mutex::default(),
            runtime,
        })
    }

    /// Waits for a spare whose hello matches, at most so long. Strangers are sent away.
    pub fn admit(&self, limit: Duration) -> Option<StateSender> {
        let first = async { timeout(limit, self.first_spare()).await.ok()? };
        let (connection, theirs, control, stream) = self.runtime.block_on(first)?;
        info!(spare = %theirs.node, "A spare is there");
        Some(StateSender {
            runtime: Arc::clone(&self.runtime),
            connection,
            theirs,
            control,
            stream,
        })
    }

    /// A stranger keeps nobody waiting: each is greeted by a task, which goes on when the caller's time is up.
    async fn first_spare(&self) -> Option<Greeted> {
        let mut greeted = self.greeted.lock().await;
        loop {
            tokio::select! {
                arrival = self.endpoint.arrival() => match arrival? {
                    arrival if greeted.len() < MAX_HANDSHAKES => {
                        greeted.spawn(greet_spare(arrival, self.hello.clone()));
                    }
                    arrival => arrival.refuse(),
                },
                Some(Ok(outcome)) = greeted.join_next() => match outcome {
                    Ok(spare) => return Some(spare),
                    Err(error) => warn!(error = whole_sentence(&error), "A spare was sent away"),
                },
            }
        }
    }
}

impl Drop for StateDoor {
    fn drop(&mut self) {
        self.runtime
            .block_on(self.endpoint.close(CLOSED_DONE, "no spare is needed"));
    }
}

type Control = (MessageWriter, MessageReader);
type Greeted = (Connection, Hello, Control, SendStream);

async fn greet_spare(arrival: Arrival, ours: Hello) -> Result<Greeted, PairError> {
    let address = arrival.from();
    let connection = arrival.handshake(STEP_WAIT).await?;
    let failed = |fault| PairError::of(address, fault);
    let mut control = within(address, STEP_WAIT, accept_control(&connection)).await?;
    let mut first = within(address, STEP_WAIT, control.1.next()).await?;
    if let Message::Hello(theirs) = &mut first {
        (theirs.term, theirs.start) = (ours.term, ours.start);
    }
    let theirs = match judge(&ours, first) {
        Ok(theirs) => theirs,
        Err(error) => return Err(refuse(&connection, &mut control.0, error).await),
    };
    control
        .0
        .write(&Message::Hello(Box::new(ours)))
        .await
        .map_err(failed)?;
    let stream = open(&connection, StreamKind::State).await.map_err(failed)?;
    Ok((connection, theirs, control, stream))
}

/// Sends a VM to a spare.
#[derive(Debug)]
pub struct StateSender {
    runtime: Arc<Runtime>,
    connection: Connection,
    theirs: Hello,
    control: Control,
    stream: SendStream,
}

impl StateSender {
    /// What the spare said of itself.
    pub fn peer(&self) -> &Hello {
        &self.theirs
    }

    /// Sends one piece of a kind that the VMMs agreed on; waits while the spare is behind.
    ///
    /// # Errors
    /// When the spare is gone.
    pub fn send(&mut self, kind: u8, piece: Bytes) -> Result<(), PairError> {
        let [a, b, c, d] = u32::try_from(piece.len())
            .expect("a piece is a few MiB at most")
            .to_le_bytes();
        let head = Bytes::copy_from_slice(&[a, b, c, d, kind]);
        let address = self.connection.remote_address();
        self.runtime
            .block_on(self.stream.write_all_chunks(&mut [head, piece]))
            .map_err(|error| PairError::of(address, error.into()))
    }

    /// What the spare knows of the disk that it has, once: so many bytes at most.
    ///
    /// # Errors
    /// When it does not say it.
    pub fn hear_account(&mut self, bytes_max: usize) -> Result<Vec<u8>, PairError> {
        let address = self.connection.remote_address();
        let connection = &self.connection;
        self.runtime.block_on(within(address, STEP_WAIT, async {
            let mut stream = accept_only(connection, StreamKind::Account).await?;
            let read = stream.read_to_end(bytes_max).await;
            read.map_err(|error| StreamFault::Said(format!("The account of its disk broke off ({error})")))
        }))
    }

    /// Waits until the spare holds everything that was sent: it says so by an ack up to the start of the log.
    ///
    /// # Errors
    /// When it is gone, or does not say so in time.
    pub fn wait_until_held(&mut self, limit: Duration) -> Result<Ack, PairError> {
        let address = self.connection.remote_address();
        match self
            .runtime
            .block_on(within(address, limit, self.control.1.next()))?
        {
            Message::Ack(ack) => Ok(ack),
            _ => Err(PairError::Misbehaved(
                "an unexpected message while its copy was finished".into(),
            )),
        }
    }
}

impl Drop for StateSender {
    fn drop(&mut self) {
        self.connection.close(CLOSED_DONE.into(), b"the copy is over");
    }
}

/// Takes a VM in.
#[derive(Debug)]
pub struct StateReceiver {
    runtime: Arc<Runtime>,
    endpoint: PinnedEndpoint,
    connection: Connection,
    theirs: Hello,
    control: Control,
    stream: RecvStream,
}

impl StateReceiver {
    /// Knocks at a host once.
    ///
    /// # Errors
    /// When it runs nothing that needs a backup, or one side refuses the other.
    pub fn dial(config: &StateConfig) -> Result<Self, PairError> {
        let runtime = runtime()?;
        let pins = Pins::new(config.peers.clone());
        let _inside = runtime.enter();
        let endpoint =
            PinnedEndpoint::dial_only(config.address, config.identity.clone(), pins, LinkConfig::state())?;
        let (connection, theirs, control, stream) =
            runtime.block_on(greet_source(&endpoint, config.address, &config.hello))?;
        drop(_inside);
        Ok(Self {
            runtime,
            endpoint,
            connection,
            theirs,
            control,
            stream,
        })
    }

    /// What the other host said of itself. Its term is the one that begins when the copy is complete.
    pub fn peer(&self) -> &Hello {
        &self.theirs
    }

    /// Says what this host knows of the disk that it has.
    ///
    /// # Errors
    /// When the other host is gone.
    pub fn tell_account(&mut self, account: &[u8]) -> Result<(), PairError> {
        let address = self.connection.remote_address();
        let connection = &self.connection;
        self.runtime.block_on(within(address, STEP_WAIT, async {
            let mut stream = open(connection, StreamKind::Account).await?;
            stream.write_all(account).await?;
            stream.finish().map_err(|_| StreamFault::Ended)
        }))
    }

    /// The next piece, and its kind.
    ///
    /// # Errors
    /// When the other host is gone or breaks the rules.
    pub fn take(&mut self) -> Result<(u8, Bytes), PairError> {
        let address = self.connection.remote_address();
        let piece = self.runtime.block_on(read_piece(&mut self.stream));
        piece.map_err(|fault| PairError::of(address, fault))
    }

    /// Everything is held: the log may begin at `start`, in this term.
    ///
    /// # Errors
    /// When the other host is gone.
    pub fn confirm(
        &mut self,
        term: Term,
        start: LogOffset,
        position: lockstep_protocol::Position,
    ) -> Result<(), PairError> {
        let address = self.connection.remote_address();
        let ack = Ack {
            term,
            upto: start,
            executed: start,
            position,
        };
        self.runtime
            .block_on(self.control.0.write(&Message::Ack(ack)))
            .map_err(|fault| PairError::of(address, fault))
    }

    /// Waits until the other host has nothing more to say here.
    pub fn wait_until_over(self) {
        self.runtime
            .block_on(async { timeout(STEP_WAIT, self.connection.closed()).await })
            .ok();
    }
}

impl Drop for StateReceiver {
    fn drop(&mut self) {
        self.runtime
            .block_on(self.endpoint.close(CLOSED_DONE, "the copy is over"));
    }
}

async fn greet_source(
    endpoint: &PinnedEndpoint,
    address: SocketAddr,
    ours: &Hello,
) -> Result<(Connection, Hello, Control, RecvStream), PairError> {
    let connection = endpoint.connect(address, ATTEMPT).await?;
    let failed = |fault| PairError::of(address, fault);
    let mut control = open_control(&connection).await.map_err(failed)?;
    control
        .0
        .write(&Message::Hello(Box::new(ours.clone())))
        .await
        .map_err(failed)?;
    let reply = within(address, STEP_WAIT, control.1.next()).await?;
    let mut ours = ours.clone();
    if let Message::Hello(theirs) = &reply {
        (ours.term, ours.start) = (theirs.term, theirs.start);
    }
    let theirs = match judge(&ours, reply) {
        Ok(theirs) => theirs,
        Err(error) => return Err(refuse(&connection, &mut control.0, error).await),
    };
    let stream = within(address, STEP_WAIT, accept_only(&connection, StreamKind::State)).await?;
    Ok((connection, theirs, control, stream))
}

/// What stands before a piece: how long it is, and of which kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceHead {
    /// Its bytes, at most [`PIECE_MAX`].
    pub length: usize,
    /// What it is; 0 is invalid.
    pub kind: u8,
}

/// A piece is longer than pieces are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("A piece of {0} bytes, {PIECE_MAX} are allowed")]
pub struct LongPiece(u32);

impl PieceHead {
    /// How many bytes it takes.
    pub const BYTES: usize = 5;

    /// What another host wrote before a piece.
    ///
    /// # Errors
    /// When no piece is so long.
    pub fn read([a, b, c, d, kind]: [u8; Self::BYTES]) -> Result<Self, LongPiece> {
        let length = u32::from_le_bytes([a, b, c, d]);
        match usize::try_from(length) {
            Ok(length) if length <= PIECE_MAX => Ok(Self { length, kind }),
            _ => Err(LongPiece(length)),
        }
    }
}

/// Length, kind, and so many bytes.
async fn read_piece(stream: &mut RecvStream) -> Result<(u8, Bytes), StreamFault> {
    let mut head = [0; PieceHead::BYTES];
    stream.read_exact(&mut head).await?;
    let head = PieceHead::read(head).map_err(|error| StreamFault::Said(error.to_string()))?;
    let mut piece = BytesMut::zeroed(head.length);
    stream.read_exact(&mut piece).await?;
    Ok((head.kind, piece.freeze()))
}

/// One thread beside the caller's: packets move while the caller looks at pages.
fn runtime() -> Result<Arc<Runtime>, PairError> {
    Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("state")
        .enable_all()
        .build()
        .map(Arc::new)
        .map_err(|error| PairError::Driver(error.to_string()))
}

impl PairError {
    /// Whether nobody answered: the host is down, or runs nothing that needs a backup.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Link(LinkError::Unreachable { .. }))
    }
}
