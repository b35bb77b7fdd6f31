//! Who looks for a double life: asks both hosts again and again who they are. It never touches them otherwise.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_local};

use crate::world::World;
use crate::world::config::NODES;
use crate::world::status::{self, Status};

/// A running look-out.
pub(super) struct Witness {
    stop: oneshot::Sender<()>,
    task: JoinHandle<u64>,
}

impl Witness {
    /// Looks from now on.
    pub(super) fn start(world: &World) -> Self {
        let sockets = NODES.map(|node| world.control_socket(node));
        let (stop, mut stopped) = oneshot::channel();
        let task = spawn_local(async move {
            let mut seen = 0;
            while stopped.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
                seen += u64::from(both_live(&sockets).await);
                tokio::time::sleep(INTERVAL).await;
            }
            seen
        });
        Self { stop, task }
    }

    /// How often both were live.
    pub(super) async fn stop(self) -> u64 {
        drop(self.stop);
        self.task.await.unwrap_or(0)
    }
}

/// Whether both hosts may have talked to the outside at one moment: the first one's right to do so lasts until after
/// the second one has said that it does.
async fn both_live(sockets: &[PathBuf; 2]) -> bool {
    let [first, second] = sockets;
    let Some(until) = live_until(status::ask(first).await, Instant::now()) else {
        return false;
    };
    let other = status::ask(second).await;
    let now = Instant::now();
    live_until(other, now).is_some() && now < until
}

/// Until when a host that answered just now may talk to the outside, if it may.
fn live_until(status: Option<Status>, now: Instant) -> Option<Instant> {
    let status = status?;
    match (status.role.as_str(), status.lease_ms_left) {
        ("alone", _) => Some(now + FOR_GOOD),
        // It was asked a moment ago: what it said it had left, it has not any more.
        ("primary", Some(left)) => Some(now + Duration::from_millis(left.saturating_sub(1))),
        _ => None,
    }
}

const INTERVAL: Duration = Duration::from_millis(10);
const FOR_GOOD: Duration = Duration::from_secs(3600);
