//! The thread that drives a session: a current_thread runtime of its own, so that heartbeats wait for nobody.
//! It feeds bytes and time into the pair machine and writes what the machine polls out; it decides nothing.

mod backup;
mod primary;

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lockstep_protocol::{Instant, Message, Parting, PeerLost, Sentence};
use quinn::Connection;
use thread_priority::unix::{
    RealtimeThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};
use thread_priority::{ThreadPriority, ThreadPriorityValue};
use tokio::runtime::Builder;
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::clock;
use crate::endpoint::PinnedEndpoint;
use crate::link::{BackupEvents, BackupLink, Order, PairConfig, PairError, PrimaryEvents, PrimaryLink};
use crate::streams::{MessageReader, MessageWriter, StreamFault};

/// The lowest real-time priority: before everything that is not real-time, after everything that is.
const PRIORITY: u8 = 1;
/// A silent peer is given this much longer, in which what waits in our own socket is read: it may be us who slept.
const GRACE: Duration = Duration::from_millis(2);
/// How long the closing of a connection may hold up the end of its thread.
const CLOSING: Duration = Duration::from_millis(200);
/// The code of a connection that was closed because its session ended.
const CLOSED_ENDED: u32 = 2;

/// Starts the primary's driver and waits until it has a session.
pub(crate) fn start_primary(
    config: PairConfig,
    events: Box<dyn PrimaryEvents>,
) -> Result<PrimaryLink, PairError> {
    let (link, thread) = start("pair-primary", |report| primary::run(config, events, report))?;
    Ok(link.driven_by(thread))
}

/// Starts the backup's driver and waits until it has a session.
pub(crate) fn start_backup(
    config: PairConfig,
    events: Box<dyn BackupEvents>,
) -> Result<BackupLink, PairError> {
    let (link, thread) = start("pair-backup", |report| backup::run(config, events, report))?;
    Ok(link.driven_by(thread))
}

/// How a driver reports its session, or why there is none.
type Report<L> = SyncSender<Result<L, PairError>>;

/// Runs `session` on a thread of its own, and waits for its report.
fn start<L, F>(
    name: &str,
    session: impl FnOnce(Report<L>) -> F + Send + 'static,
) -> Result<(L, JoinHandle<()>), PairError>
where
    L: Send + 'static,
    F: Future<Output = ()>,
{
    let (report, outcome) = sync_channel(1);
    let run = move || {
        raise_priority();
        match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(session(report)),
            Err(error) => tell(&report, Err(PairError::Driver(error.to_string()))),
        }
    };
    let thread = thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| PairError::Driver(error.to_string()))?;
    let link = outcome
        .recv()
        .map_err(|_| PairError::Driver("it ended without a word".into()))??;
    Ok((link, thread))
}

fn tell<L>(report: &Report<L>, outcome: Result<L, PairError>) {
    // Whoever asked is waiting: it cannot have gone away.
    let _ = report.send(outcome);
}

/// A heartbeat that waits for a CPU looks like a dead host. Where it is not allowed, it is not needed either.
fn raise_priority() {
    let priority = ThreadPriorityValue::try_from(PRIORITY).expect("one is a priority");
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::RoundRobin);
    let raised = set_thread_priority_and_policy(
        thread_native_id(),
        ThreadPriority::Crossplatform(priority),
        policy,
    );
    if let Err(error) = raised {
        debug!(?error, "The driver's thread has no real-time priority");
    }
}

/// Why a session ended.
#[derive(Clone, Debug)]
enum Ending {
    /// The peer is lost.
    Lost(PeerLost),
    /// The VMM wanted it so.
    Ordered,
}

impl Ending {
    /// What the handle is told.
    fn loss(&self) -> PeerLost {
        match self {
            Self::Lost(why) => why.clone(),
            Self::Ordered => PeerLost::Disconnected("this host ended the session".into()),
        }
    }
}

/// Tells the handle that the session is over even when the driver panics: nobody waits for a dead thread.
struct LastWord<F: Fn(PeerLost)>(F);

impl<F: Fn(PeerLost)> Drop for LastWord<F> {
    fn drop(&mut self) {
        // The first word counts: after a session that ended in good order this one is not heard.
        (self.0)(PeerLost::Disconnected("the connection's own thread died".into()));
    }
}

fn misbehaved(what: impl Into<String>) -> Ending {
    Ending::Lost(PeerLost::Misbehaved(what.into()))
}

/// What an ended stream means for the session.
fn broken(connection: &Connection) -> impl Fn(StreamFault) -> Ending {
    let address = connection.remote_address();
    move |fault| Ending::Lost(fault.lost(address))
}

/// Sleeps until `moment` on the pair's clock.
async fn sleep_until(moment: Instant) {
    sleep(moment.saturating_since(clock::now())).await;
}

/// What the peer says on the control stream after the hello: that it leaves.
async fn hear_control(control: &mut MessageReader, connection: &Connection) -> Ending {
    match control.next().await {
        Ok(Message::Goodbye(why)) => Ending::Lost(PeerLost::Left(why)),
        Ok(Message::Refused(why)) => Ending::Lost(PeerLost::Disconnected(why.to_string())),
        Ok(_) => misbehaved("an unexpected message on the control stream"),
        Err(fault) => broken(connection)(fault),
    }
}

/// Waits for the VMM's order to end the session, lets `flush` finish if there is time, and says goodbye.
async fn obey(
    order: Order,
    control: &mut MessageWriter,
    flush: impl Future<Output = ()>,
    limit: Duration,
) -> Ending {
    if let Order::Leave(why) = order {
        let _ = timeout(limit, flush).await;
        let _ = timeout(limit, say_goodbye(control, why)).await;
    }
    Ending::Ordered
}

async fn say_goodbye(control: &mut MessageWriter, why: Parting) {
    if control.write(&Message::Goodbye(why)).await.is_ok() {
        control.finish().await;
    }
}

/// The session is over and everybody on this host knows it: let the peer know too.
async fn close(endpoint: &PinnedEndpoint, ending: &Ending) {
    let reason = match ending {
        Ending::Lost(why) => Sentence::new(&why.to_string()),
        Ending::Ordered => Sentence::new("it ended the session"),
    };
    let _ = timeout(CLOSING, endpoint.close(CLOSED_ENDED, reason.as_str())).await;
}
