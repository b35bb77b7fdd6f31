//! From an address to a session: connect or accept, exchange hellos, open the streams. The driver's thread runs
//! this once; a session that is lost is never made again within its term.

use std::net::SocketAddr;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use lockstep_protocol::{Hello, Message, Sentence};
use quinn::{Connection, RecvStream, SendStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::info;

use crate::config::{LinkConfig, MAX_HANDSHAKES};
use crate::endpoint::{Arrival, PinnedEndpoint};
use crate::failure::{LinkError, whole_sentence};
use crate::knocks::Knocks;
use crate::link::{PairConfig, PairError};
use crate::pinning::Pins;
use crate::streams::{
    MessageReader, MessageWriter, StreamFault, StreamKind, accept_control, accept_with_heartbeat, open,
    open_control,
};

/// How long one attempt to connect may take before the next begins.
const ATTEMPT: Duration = Duration::from_secs(1);
/// How long a recognised peer may take for each step of the hello.
const HELLO_WAIT: Duration = Duration::from_secs(5);
/// How long to wait for a refusal to arrive.
const REFUSAL_WAIT: Duration = Duration::from_secs(1);
/// The first and the longest pause between attempts to connect.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// The code of a connection that was closed because the hellos did not match.
pub(crate) const CLOSED_REFUSED: u32 = 1;

/// A session whose hello passed. `L` is our end of the log stream, `A` of the ack stream.
#[derive(Debug)]
pub(crate) struct Session<L, A> {
    pub(crate) endpoint: PinnedEndpoint,
    pub(crate) connection: Connection,
    pub(crate) theirs: Hello,
    pub(crate) control: (MessageWriter, MessageReader),
    pub(crate) beats: (MessageWriter, MessageReader),
    pub(crate) log: L,
    pub(crate) acks: A,
}

/// The primary's end.
pub(crate) type PrimarySession = Session<SendStream, MessageReader>;
/// The backup's end.
pub(crate) type BackupSession = Session<RecvStream, MessageWriter>;

/// Connects to the backup, again and again until it answers or patience ends, in the middle of an attempt too: the guest may
/// stand still meanwhile. The error is that of the last attempt that came to an end.
pub(crate) async fn connect(config: &PairConfig) -> Result<PrimarySession, PairError> {
    let pins = Pins::one(config.peer.clone());
    let endpoint =
        PinnedEndpoint::dial_only(config.address, config.identity.clone(), pins, LinkConfig::pair())?;
    let mut last = LinkError::Unreachable {
        address: config.address,
    };
    let pauses = ExponentialBuilder::new()
        .with_min_delay(PAUSES.0)
        .with_max_delay(PAUSES.1)
        .without_max_times()
        .with_jitter();
    let attempts = (|| greet_backup(&endpoint, config))
        .retry(pauses)
        .when(PairError::may_pass)
        .notify(|error, _| {
            if let PairError::Link(error) = error {
                last = error.clone();
            }
        });
    let outcome = timeout(config.patience, attempts).await;
    outcome.unwrap_or_else(|_| Err(last.into()))
}

async fn greet_backup(endpoint: &PinnedEndpoint, config: &PairConfig) -> Result<PrimarySession, PairError> {
    let address = config.address;
    let connection = endpoint.connect(address, ATTEMPT).await?;
    let failed = |fault| PairError::of(address, fault);
    let mut control = open_control(&connection).await.map_err(failed)?;
    control
        .0
        .write(&Message::Hello(Box::new(config.hello.clone())))
        .await
        .map_err(failed)?;
    let reply = within(address, HELLO_WAIT, control.1.next()).await?;
    let theirs = match judge(&config.hello, reply) {
        Ok(theirs) => theirs,
        Err(error) => return Err(refuse(&connection, &mut control.0, error).await),
    };
    let beats = open(&connection, StreamKind::Heartbeat).await.map_err(failed)?;
    let log = open(&connection, StreamKind::Log).await.map_err(failed)?;
    let (echoes, acks) = within(
        address,
        HELLO_WAIT,
        accept_with_heartbeat(&connection, StreamKind::Ack),
    )
    .await?;
    info!(backup = %theirs.node, %address, "The backup is there");
    Ok(Session {
        endpoint: endpoint.clone(),
        connection,
        theirs,
        control,
        beats: (MessageWriter::new(beats), MessageReader::new(echoes)),
        log,
        acks: MessageReader::new(acks),
    })
}

/// Listens for the primary until it comes or patience ends. `listening` is told the address that is listened on.
pub(crate) async fn listen(
    config: &PairConfig,
    listening: impl FnOnce(SocketAddr),
) -> Result<BackupSession, PairError> {
    let pins = Pins::one(config.peer.clone());
    let endpoint = PinnedEndpoint::listen(config.address, config.identity.clone(), pins, LinkConfig::pair())?;
    listening(endpoint.local_address()?);
    let mut last = None;
    let outcome = timeout(config.patience, await_primary(&endpoint, config, &mut last)).await;
    let session = match outcome {
        Ok(outcome) => outcome?,
        Err(_) => {
            let last = last.map(|error| whole_sentence(&error));
            return Err(PairError::NobodyCame {
                address: config.address,
                patience: config.patience,
                last,
            });
        }
    };
    // From here on this address takes nobody else.
    let door = session.endpoint.clone();
    tokio::spawn(async move {
        while let Some(arrival) = door.arrival().await {
            arrival.refuse();
        }
    });
    Ok(session)
}

/// Takes the first peer whose hello matches. A stranger keeps nobody waiting: each handshake is a task.
async fn await_primary(
    endpoint: &PinnedEndpoint,
    config: &PairConfig,
    last: &mut Option<PairError>,
) -> Result<BackupSession, PairError> {
    let mut greeted: JoinSet<Result<BackupSession, PairError>> = JoinSet::new();
    let mut knocks = Knocks::default();
    loop {
        tokio::select! {
            arrival = endpoint.arrival() => match arrival {
                Some(arrival) if greeted.len() < MAX_HANDSHAKES => {
                    greeted.spawn(greet_primary(endpoint.clone(), arrival, config.hello.clone()));
                }
                Some(arrival) => arrival.refuse(),
                None => return Err(PairError::Driver("the endpoint was closed".into())),
            },
            Some(outcome) = greeted.join_next() => match outcome {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(error)) if error.is_mismatch() => return Err(error),
                Ok(Err(error)) => {
                    knocks.tell(&error);
                    *last = Some(error);
                }
                Err(died) => return Err(PairError::Driver(died.to_string())),
            },
        }
    }
}

async fn greet_primary(
    endpoint: PinnedEndpoint,
    arrival: Arrival,
    ours: Hello,
) -> Result<BackupSession, PairError> {
    let address = arrival.from();
    let connection = arrival.handshake(HELLO_WAIT).await?;
    let failed = |fault| PairError::of(address, fault);
    let mut control = within(address, HELLO_WAIT, accept_control(&connection)).await?;
    let first = within(address, HELLO_WAIT, control.1.next()).await?;
    let theirs = match judge(&ours, first) {
        Ok(theirs) => theirs,
        Err(error) => return Err(refuse(&connection, &mut control.0, error).await),
    };
    control
        .0
        .write(&Message::Hello(Box::new(ours.clone())))
        .await
        .map_err(failed)?;
    let echoes = open(&connection, StreamKind::Heartbeat).await.map_err(failed)?;
    let acks = open(&connection, StreamKind::Ack).await.map_err(failed)?;
    // The primary judges our hello too: its streams come when it agrees, its refusal when not.
    let (beats, log) = tokio::select! {
        streams = within(address, HELLO_WAIT, accept_with_heartbeat(&connection, StreamKind::Log)) => streams?,
        word = control.1.next() => return Err(refusal_of(word.map_err(failed)?)),
    };
    info!(primary = %theirs.node, %address, "The primary is there");
    Ok(Session {
        endpoint,
        connection,
        theirs,
        control,
        beats: (MessageWriter::new(echoes), MessageReader::new(beats)),
        log,
        acks: MessageWriter::new(acks),
    })
}

/// Is this the hello of our other half?
pub(crate) fn judge(ours: &Hello, word: Message) -> Result<Hello, PairError> {
    match word {
        Message::Hello(theirs) => match Hello::check(ours, &theirs) {
            Ok(()) => Ok(*theirs),
            Err(refusal) => Err(PairError::Refused(refusal)),
        },
        Message::Foreign(theirs) => Err(PairError::Refused(ours.refuse_foreign(&theirs))),
        other => Err(refusal_of(other)),
    }
}

/// A word in the place of a hello or after it: a refusal, or nonsense.
fn refusal_of(word: Message) -> PairError {
    match word {
        Message::Refused(sentence) => PairError::RefusedByPeer(sentence),
        other => PairError::Misbehaved(format!("an unexpected {}", name_of(&other))),
    }
}

fn name_of(message: &Message) -> &'static str {
    match message {
        Message::Hello(_) | Message::Foreign(_) => "hello",
        Message::Refused(_) => "refusal",
        Message::Goodbye(_) => "goodbye",
        Message::Ack(_) => "ack",
        Message::Heartbeat(_) => "heartbeat",
        Message::Diverged(_) | Message::Census(_) => "word of a backup that has diverged",
    }
}

/// Tells the peer why there is no session, on the control stream and again in the closing of the connection.
pub(crate) async fn refuse(
    connection: &Connection,
    control: &mut MessageWriter,
    error: PairError,
) -> PairError {
    if let PairError::Refused(refusal) = &error {
        let sentence = Sentence::new(&refusal.to_string());
        if control.write(&Message::Refused(sentence.clone())).await.is_ok() {
            let _ = timeout(REFUSAL_WAIT, control.finish()).await;
        }
        connection.close(CLOSED_REFUSED.into(), sentence.as_str().as_bytes());
    }
    error
}

/// A step of the hello, with an end to its time.
pub(crate) async fn within<T>(
    address: SocketAddr,
    limit: Duration,
    step: impl Future<Output = Result<T, StreamFault>>,
) -> Result<T, PairError> {
    match timeout(limit, step).await {
        Ok(outcome) => outcome.map_err(|fault| PairError::of(address, fault)),
        Err(_) => Err(PairError::Link(LinkError::Unreachable { address })),
    }
}
