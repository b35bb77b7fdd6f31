//! The side that takes a VM in: it knocks, says what it has already, and reads pieces until it holds all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lockstep_protocol::{Ack, Hello, LogOffset, Message, Position, Term};
use quinn::{Connection, RecvStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::piece::{self, PIECES_WAITING, Piece};
use super::{CLOSED_DONE, Control, STEP_WAIT, StateConfig, runtime};
use crate::config::LinkConfig;
use crate::endpoint::PinnedEndpoint;
use crate::link::PairError;
use crate::pinning::Pins;
use crate::session::{judge, refuse, within};
use crate::streams::{StreamFault, StreamKind, accept_only, open, open_control};

/// How long one attempt to reach a host may take.
const ATTEMPT: Duration = Duration::from_millis(500);

/// Takes a VM in.
#[derive(Debug)]
pub struct StateReceiver {
    runtime: Arc<Runtime>,
    endpoint: PinnedEndpoint,
    connection: Connection,
    theirs: Hello,
    control: Control,
    pieces: mpsc::Receiver<Result<Piece, StreamFault>>,
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
        let (queue, pieces) = mpsc::channel(PIECES_WAITING);
        runtime.spawn(piece::read_all(stream, queue));
        Ok(Self {
            runtime,
            endpoint,
            connection,
            theirs,
            control,
            pieces,
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
        let piece = self.pieces.blocking_recv().unwrap_or(Err(StreamFault::Ended));
        piece.map_err(|fault| PairError::of(self.connection.remote_address(), fault))
    }

    /// Everything is held: the log may begin at `start`, in this term.
    ///
    /// # Errors
    /// When the other host is gone.
    pub fn confirm(&mut self, term: Term, start: LogOffset, position: Position) -> Result<(), PairError> {
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
