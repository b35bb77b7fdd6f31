//! The service: answers questions of pinned clients from one store.
//!
//! `lockstep-arbiter serve` runs it. An answer leaves only after the store has made it durable. Everything that
//! a client can make it hold is bounded: connections, streams, bytes of a question, questions at the store, and
//! the time that others wait for a place there. It keeps no state of its own, so it may be killed at any
//! instruction.

pub mod config;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lockstep_protocol::ids::NodeName;
use lockstep_quic::config::LinkConfig;
use lockstep_quic::endpoint::{Arrival, EndpointError, PinnedEndpoint};
use lockstep_quic::identity::{Fingerprint, Identity, PinnedPeer};
use lockstep_quic::pinning::Pins;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::client::{DEFAULT_ATTEMPT, answer_from};
use crate::message::{Answer, MAX_MESSAGE, Question, decode, encode};
use crate::register::VmName;
use crate::store::Store;

/// Open connections, unfinished handshakes included. A VMM has one, or two while it replaces one.
pub const MAX_CONNECTIONS: usize = 64;
/// Questions that may be at the store at the same time; more wait in their streams.
pub const MAX_AT_STORE: usize = 8;
/// How long a handshake may take.
pub const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a question may take to arrive.
pub const QUESTION: Duration = Duration::from_secs(5);
/// How long a question may wait for a place at the store. A disk that hangs keeps every place for ever.
pub const TURN: Duration = Duration::from_millis(400);
/// How long an answer may take to leave: it is one packet, and whoever does not read it keeps a place meanwhile.
pub const ANSWER: Duration = Duration::from_secs(1);
/// How long answers that are under way may take when the service is told to end.
pub const FAREWELL: Duration = Duration::from_secs(2);

/// What is said to whoever finds no place at the store.
const STORE_HANGS: &str = "The disk of the terms does not answer in time; see on the arbiter's host whether it \
                           is mounted and its server is up";

const _: () = assert!(
    2 * TURN.as_millis() < DEFAULT_ATTEMPT.as_millis(),
    "half of an attempt is for the warm connection: the client hears why before it gives that up"
);

/// One pinned client and what it may ask about.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its certificate.
    pub peer: PinnedPeer,
    /// The host in whose name it may claim.
    pub node: NodeName,
    /// The VMs that it may ask about; none named means all.
    pub vms: Option<Vec<VmName>>,
}

impl Client {
    /// Whether it may ask this; if not, the sentence that says why.
    fn judge(&self, question: &Question) -> Result<(), String> {
        let vm = match question {
            Question::Read { vm } => vm,
            Question::Claim { me, .. } if me.node != self.node => {
                return Err(format!(
                    "The certificate is that of node {}, not of {}",
                    self.node, me.node
                ));
            }
            Question::Claim { vm, .. } => vm,
        };
        match &self.vms {
            Some(vms) if !vms.contains(vm) => Err(format!("Node {} has no part in the VM {vm}", self.node)),
            _ => Ok(()),
        }
    }
}

/// The service, bound to its port.
pub struct Server<S> {
    endpoint: PinnedEndpoint,
    desk: Arc<Desk<S>>,
}

/// What every connection needs.
struct Desk<S> {
    store: Arc<S>,
    clients: BTreeMap<String, Client>,
    at_store: Semaphore,
}

impl<S: Store + 'static> Server<S> {
    /// Binds the port; must be called inside a tokio runtime. Each client has a certificate of its own, by which
    /// it is known; [`ServiceConfig::load`](config::ServiceConfig::load) sees to that.
    pub fn bind(
        listen: SocketAddr,
        identity: Identity,
        clients: Vec<Client>,
        store: S,
    ) -> Result<Self, EndpointError> {
        let pins = Pins::new(clients.iter().map(|client| client.peer.clone()).collect());
        let endpoint = PinnedEndpoint::listen(listen, identity, pins, LinkConfig::arbiter())?;
        let clients = clients
            .into_iter()
            .map(|client| (key_of(&client.peer), client))
            .collect();
        let at_store = Semaphore::new(MAX_AT_STORE);
        Ok(Self {
            endpoint,
            desk: Arc::new(Desk {
                store: Arc::new(store),
                clients,
                at_store,
            }),
        })
    }

    /// Where it listens.
    pub fn local_address(&self) -> Result<SocketAddr, EndpointError> {
        self.endpoint.local_address()
    }

    /// Serves until `end` comes; answers that are under way then still leave.
    pub async fn run(self, end: impl Future<Output = ()>) {
        let mut sessions = JoinSet::new();
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => break,
                arrival = self.endpoint.arrival() => match arrival {
                    Some(arrival) => self.admit(arrival, &mut sessions),
                    None => break,
                },
                Some(_) = sessions.join_next() => {}
            }
        }
        // Nobody may start a new question, and whoever waits for an answer gets it: permits come back with it.
        let everything = u32::try_from(MAX_AT_STORE).expect("the constant is small");
        let _kept_until_all_are_gone = timeout(FAREWELL, self.desk.at_store.acquire_many(everything)).await;
        let _ = timeout(FAREWELL, self.endpoint.close(0, "The arbiter ends")).await;
    }

    fn admit(&self, arrival: Arrival, sessions: &mut JoinSet<()>) {
        if self.endpoint.open_connections() >= MAX_CONNECTIONS {
            warn!(from = %arrival.from(), "Too many connections; one is sent away");
            return arrival.refuse();
        }
        let (endpoint, desk) = (self.endpoint.clone(), self.desk.clone());
        sessions.spawn(async move {
            let from = arrival.from();
            match arrival.handshake(HANDSHAKE).await {
                Ok(connection) => desk.serve(&endpoint, connection).await,
                Err(error) => {
                    let reason = std::error::Error::source(&error).map(ToString::to_string);
                    match error.may_pass() {
                        true => debug!(%from, %error, reason, "A handshake was not finished"),
                        false => warn!(%from, %error, reason, "A handshake failed"),
                    }
                }
            }
        });
    }
}

impl<S: Store + 'static> Desk<S> {
    /// One client, until it leaves. The transport bounds how many questions it can have open.
    async fn serve(self: Arc<Self>, endpoint: &PinnedEndpoint, connection: Connection) {
        let from = connection.remote_address();
        let peer = endpoint.peer_of(&connection).map(|peer| key_of(&peer));
        let Some(client) = peer.and_then(|key| self.clients.get(&key)) else {
            // The handshake admits pinned certificates only, and every pin is a client's.
            return connection.close(1_u32.into(), b"Who are you?");
        };
        info!(node = %client.node, %from, "A client is connected");
        let mut questions = JoinSet::new();
        loop {
            tokio::select! {
                stream = connection.accept_bi() => match stream {
                    Ok((sending, receiving)) => {
                        let (desk, client) = (self.clone(), client.clone());
                        questions.spawn(async move { desk.talk(&client, sending, receiving).await });
                    }
                    Err(reason) => {
                        info!(node = %client.node, %from, %reason, "A client has left");
                        break;
                    }
                },
                Some(_) = questions.join_next() => {}
            }
        }
        // A claim that is at the store is not taken back because its client has left. Whatever else is detached
        // here ends at once, since its stream is closed: no more than MAX_AT_STORE of these tasks can last.
        questions.detach_all();
    }

    async fn talk(&self, client: &Client, mut sending: SendStream, mut receiving: RecvStream) {
        let Ok(Ok(bytes)) = timeout(QUESTION, receiving.read_to_end(MAX_MESSAGE)).await else {
            debug!(node = %client.node, "A question did not arrive whole");
            let _ = sending.reset(1_u32.into());
            return;
        };
        let (answer, permit) = match hear(client, &bytes) {
            Err(answer) => (answer, None),
            Ok(question) => match self.turn(sending.stopped()).await {
                Ok(permit) => (self.answer(client, question).await, Some(permit)),
                Err(NoTurn::Left) => {
                    debug!(node = %client.node, ?question, "Whoever asked has left before its turn");
                    return;
                }
                Err(NoTurn::Late) => {
                    warn!(node = %client.node, "All places at the store are taken: its disk hangs");
                    (Answer::failed(true, STORE_HANGS), None)
                }
            },
        };
        let sent = timeout(ANSWER, sending.write_all(&encode(&answer))).await;
        let _ = match sent {
            Ok(_) => sending.finish(),
            Err(_) => sending.reset(1_u32.into()),
        };
        debug!(node = %client.node, ?answer, ?sent, "Answered");
        // Only now: whoever holds all places knows that all answers have left.
        drop(permit);
    }

    /// A place at the store. `left` comes when whoever asked has closed the connection, or the stream that the
    /// answer would leave by.
    async fn turn(&self, left: impl Future) -> Result<SemaphorePermit<'_>, NoTurn> {
        tokio::select! {
            // Looked at first: a term is not to be won in the name of somebody who is long gone.
            biased;
            _ = left => Err(NoTurn::Left),
            place = timeout(TURN, self.at_store.acquire()) => match place {
                Ok(place) => Ok(place.expect("the semaphore is never closed")),
                Err(_) => Err(NoTurn::Late),
            }
        }
    }

    /// Puts the question to the store; the caller has a place there.
    async fn answer(&self, client: &Client, question: Question) -> Answer {
        let store = self.store.clone();
        let asked = question.clone();
        let answer = match spawn_blocking(move || answer_from(&*store, &asked)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                warn!(node = %client.node, %error, source, "The store has no answer");
                Answer::failed_by(error.may_pass(), &error)
            }
            Err(_) => Answer::failed(true, "The arbiter is ending"),
        };
        if let Answer::Granted { term } = &answer {
            info!(node = %client.node, ?question, %term, "A term was granted");
        }
        answer
    }
}

/// Why a question is not put to the store.
enum NoTurn {
    /// Nobody waits for the answer any more.
    Left,
    /// No place became free in time.
    Late,
}

/// The question that this client may ask, or what is to be said to anything else.
fn hear(client: &Client, bytes: &[u8]) -> Result<Question, Answer> {
    let question = decode(bytes).map_err(|error| Answer::failed_by(false, &error))?;
    match client.judge(&question) {
        Ok(()) => Ok(question),
        Err(sentence) => {
            warn!(node = %client.node, sentence, "A question was refused");
            Err(Answer::failed(false, &sentence))
        }
    }
}

fn key_of(peer: &PinnedPeer) -> String {
    let fingerprint: Fingerprint = peer.fingerprint();
    fingerprint.to_string()
}

#[cfg(test)]
mod tests;
