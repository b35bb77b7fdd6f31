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

/// Whether both hosts were seen at one moment with the right to talk to the outside.
///
/// A host that is stopped in the middle of an answer gives it late. So a primary's right is counted from before it was
/// asked, and one that is alone has to be so in the same term when it is asked again.
async fn both_live(sockets: &[PathBuf; 2]) -> bool {
    let [first, second] = sockets;
    let asked = Instant::now();
    let Some(one) = status::ask(first).await.filter(Status::is_live) else {
        return false;
    };
    let other_asked = Instant::now();
    let Some(other) = status::ask(second).await.filter(Status::is_live) else {
        return false;
    };
    let answered = Instant::now();
    let Some(again) = status::ask(first).await.filter(|again| again.term == one.term) else {
        return false;
    };
    let still = |status: &Status, asked: Instant| match (status.role.as_str(), status.lease_ms_left) {
        ("primary", Some(left)) => answered < asked + Duration::from_millis(left.saturating_sub(1)),
        (role, _) => role == "alone",
    };
    again.role == one.role && still(&one, asked) && still(&other, other_asked)
}

const INTERVAL: Duration = Duration::from_millis(10);
