//! The client's connection to the service, kept warm by the client's own thread.
//!
//! [`ArbiterClient`](super::ArbiterClient) starts it. Between questions it keeps a connection open and makes a
//! new one when the old one ends; a question that meets a dead connection is asked again over a fresh one while
//! its time lasts, which is safe since the same claim has the same answer.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use lockstep_quic::config::LinkConfig;
use lockstep_quic::endpoint::PinnedEndpoint;
use lockstep_quic::failure::LinkError;
use lockstep_quic::identity::{Identity, PinnedPeer};
use lockstep_quic::pinning::Pins;
use quinn::{Connection, ConnectionError, ReadToEndError, WriteError};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::{Cause, ClaimError, Job, OpenError};
use crate::message::{Answer, MAX_MESSAGE, Question, decode, encode};

/// How long to wait before the next attempt at a warm connection: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// How long a warm connection may take to come about.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// One arbiter service and the connection to it.
pub(super) struct Service {
    runtime: Runtime,
    link: Link,
}

impl Service {
    /// Loads our identity and the arbiter's pin, and binds a socket.
    pub(super) fn open(
        address: SocketAddr,
        certificate: &Path,
        own_certificate: &Path,
        own_key: &Path,
    ) -> Result<Self, OpenError> {
        let identity = Identity::load(own_certificate, own_key)?;
        let pins = Pins::one(PinnedPeer::load(certificate)?);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let guard = runtime.enter();
        let endpoint = PinnedEndpoint::dial_only(address, identity, pins, LinkConfig::arbiter())?;
        drop(guard);
        let link = Link {
            endpoint,
            address,
            connection: None,
            pause: Duration::ZERO,
        };
        Ok(Self { runtime, link })
    }

    /// Answers questions until nobody can ask any more.
    pub(super) fn run(self, queue: mpsc::Receiver<Job>) {
        let Self { runtime, link } = self;
        runtime.block_on(link.run(queue));
    }
}

struct Link {
    endpoint: PinnedEndpoint,
    address: SocketAddr,
    connection: Option<Connection>,
    /// Before the next attempt at a warm connection; only an answer takes it back to nothing, since a service
    /// that refuses us lets every connection begin.
    pause: Duration,
}

impl Link {
    async fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        loop {
            tokio::select! {
                job = queue.recv() => match job {
                    Some(job) => {
                        let answer = self.ask(&job.question, job.deadline).await;
                        job.answer(answer);
                    }
                    None => break,
                },
                () = self.keep_warm() => {}
            }
        }
        let _ = timeout(FIRST_PAUSE, self.endpoint.close(0, "The client ends")).await;
    }

    /// Returns when something changed; may be dropped at any time.
    async fn keep_warm(&mut self) {
        if let Some(connection) = &self.connection {
            let end = LinkError::of(self.address, connection.closed().await);
            info!(reason = %end, "The connection to the arbiter ended");
            self.connection = None;
            self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
            return;
        }
        sleep(self.pause).await;
        match self.endpoint.connect(self.address, HANDSHAKE).await {
            Ok(connection) => {
                debug!(address = %self.address, "Connected to the arbiter");
                self.connection = Some(connection);
            }
            Err(error) => {
                warn!(%error, "No connection to the arbiter; trying on");
                self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
            }
        }
    }

    /// Asks over the warm connection, and if that is dead over a fresh one.
    async fn ask(&mut self, question: &Question, deadline: Instant) -> Result<Answer, ClaimError> {
        let left = || deadline.saturating_duration_since(Instant::now());
        if let Some(connection) = self.connection.take() {
            // Half of the time is for this connection: if the other host is gone it stays silent.
            match timeout(left() / 2, exchange(&connection, question)).await {
                Ok(Ok(answer)) => {
                    self.pause = Duration::ZERO;
                    self.connection = Some(connection);
                    return Ok(answer);
                }
                Ok(Err(fault)) => debug!(?fault, "The warm connection is dead"),
                Err(_) => debug!("The warm connection is silent"),
            }
        }
        let connection = self.endpoint.connect(self.address, left()).await?;
        match timeout(left(), exchange(&connection, question)).await {
            Ok(Ok(answer)) => {
                self.connection = Some(connection);
                Ok(answer)
            }
            Ok(Err(fault)) => Err(self.explain(fault)),
            Err(_) => Err(LinkError::Unreachable {
                address: self.address,
            }
            .into()),
        }
    }

    fn explain(&self, fault: ExchangeFault) -> ClaimError {
        match fault {
            ExchangeFault::Connection(error) => LinkError::of(self.address, error).into(),
            ExchangeFault::Answer(answer) => ClaimError::Fatal(Cause::Impossible { answer }),
        }
    }
}

#[derive(Debug)]
enum ExchangeFault {
    Connection(ConnectionError),
    Answer(String),
}

/// One question and its answer, on a stream of their own.
async fn exchange(connection: &Connection, question: &Question) -> Result<Answer, ExchangeFault> {
    let odd = |what: &str| ExchangeFault::Answer(what.to_owned());
    let (mut asking, mut listening) = connection.open_bi().await.map_err(ExchangeFault::Connection)?;
    asking
        .write_all(&encode(question))
        .await
        .map_err(|error| match error {
            WriteError::ConnectionLost(error) => ExchangeFault::Connection(error),
            other => odd(&other.to_string()),
        })?;
    let _ = asking.finish();
    let bytes = listening
        .read_to_end(MAX_MESSAGE)
        .await
        .map_err(|error| match error {
            ReadToEndError::Read(quinn::ReadError::ConnectionLost(error)) => ExchangeFault::Connection(error),
            other => odd(&other.to_string()),
        })?;
    decode(&bytes).map_err(|error| odd(&error.to_string()))
}
