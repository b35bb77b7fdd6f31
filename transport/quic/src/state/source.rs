//! The side that has the VM: a door where spares knock, and the way on which a VM goes to one of them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lockstep_protocol::{Ack, Hello, Message};
use quinn::{Connection, SendStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{Mutex, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tracing::info;

use super::piece::{self, PIECES_WAITING, Piece};
use super::{CLOSED_DONE, Control, STEP_WAIT, StateConfig, runtime};
use crate::config::{LinkConfig, MAX_HANDSHAKES};
use crate::endpoint::{Arrival, PinnedEndpoint};
use crate::knocks::Knocks;
use crate::link::PairError;
use crate::pinning::Pins;
use crate::session::{judge, refuse, within};
use crate::streams::{StreamFault, StreamKind, accept_control, accept_only, open};

/// How long a spare may be behind without taking one more piece. Its keep-alives go on while its disk hangs, so nothing else ends
/// the waiting; a disk that needs longer for the few MiB of a piece follows no VM.
const PIECE_WAIT: Duration = Duration::from_secs(30);

/// Where spares knock.
#[derive(Debug)]
pub struct StateDoor {
    endpoint: PinnedEndpoint,
    hello: Hello,
    visitors: Mutex<Visitors>,
    runtime: Arc<Runtime>,
}

/// Who knocked and is being greeted, or was sent away.
#[derive(Debug, Default)]
struct Visitors {
    greeted: JoinSet<Result<Greeted, PairError>>,
    knocks: Knocks,
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
            visitors: Mutex::default(),
            runtime,
        })
    }

    /// Waits for a spare whose hello matches, at most so long. Strangers are sent away.
    pub fn admit(&self, limit: Duration) -> Option<StateSender> {
        let first = async { timeout(limit, self.first_spare()).await.ok()? };
        let (connection, theirs, control, stream) = self.runtime.block_on(first)?;
        info!(spare = %theirs.node, "A spare is there");
        let (pieces, queue) = mpsc::channel(PIECES_WAITING);
        let writer = self.runtime.spawn(piece::write_all(stream, queue));
        Some(StateSender {
            runtime: Arc::clone(&self.runtime),
            connection,
            theirs,
            control,
            pieces,
            writer: Some(writer),
        })
    }

    /// A stranger keeps nobody waiting: each is greeted by a task, which goes on when the caller's time is up.
    async fn first_spare(&self) -> Option<Greeted> {
        let mut visitors = self.visitors.lock().await;
        let Visitors { greeted, knocks } = &mut *visitors;
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
                    Err(error) => knocks.tell(&error),
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
    pieces: mpsc::Sender<Piece>,
    /// None once it was heard how it ended.
    writer: Option<JoinHandle<Result<(), StreamFault>>>,
}

impl StateSender {
    /// What the spare said of itself.
    pub fn peer(&self) -> &Hello {
        &self.theirs
    }

    /// Sends one piece of a kind that the VMMs agreed on, as soon as those before it are sent; waits while the spare is behind.
    ///
    /// # Errors
    /// When the spare is gone, as it was found with a piece before, or takes nothing for too long.
    pub fn send(&mut self, kind: u8, piece: Bytes) -> Result<(), PairError> {
        self.send_within(PIECE_WAIT, kind, piece)
    }

    fn send_within(&mut self, limit: Duration, kind: u8, piece: Bytes) -> Result<(), PairError> {
        let sending = self.pieces.send_timeout((kind, piece), limit);
        match self.runtime.block_on(sending) {
            Ok(()) => return Ok(()),
            Err(SendTimeoutError::Timeout(_)) => {
                let reason = b"the copy is given up: its receiver takes nothing";
                self.connection.close(CLOSED_DONE.into(), reason);
                return Err(PairError::Stuck(limit));
            }
            Err(SendTimeoutError::Closed(_)) => {}
        }
        let fault = match self.writer.take().map(|writer| self.runtime.block_on(writer)) {
            Some(Ok(Err(fault))) => fault,
            Some(Ok(Ok(())) | Err(_)) | None => StreamFault::Ended,
        };
        Err(PairError::of(self.connection.remote_address(), fault))
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

#[cfg(test)]
mod tests;
