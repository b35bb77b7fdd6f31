//! What a link and its driver's thread tell each other: "there is work", "end the session", "it has ended".

use std::sync::atomic::{AtomicBool, Ordering};

use lockstep_protocol::Parting;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Rings the driver out of its sleep, and costs next to nothing while a ring is already on its way.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rung: AtomicBool,
    notify: Notify,
}

impl Bell {
    /// There is work. What was done before the ring is seen by whoever answers it.
    pub(crate) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.notify.notify_one();
        }
    }

    /// Sleeps until it rings. Look for work after this, not before.
    pub(crate) async fn answer(&self) {
        self.notify.notified().await;
        self.rung.swap(false, Ordering::AcqRel);
    }
}

/// What the VMM asks of a session that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Let the peer have everything, say goodbye, close.
    Leave(Parting),
    /// Close.
    Quit,
}

/// The order to end the session, given once.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    given: Mutex<Option<Order>>,
    notify: Notify,
}

impl Orders {
    /// The first order counts.
    pub(crate) fn give(&self, order: Order) {
        self.given.lock().get_or_insert(order);
        self.notify.notify_one();
    }

    pub(crate) async fn wait(&self) -> Order {
        loop {
            if let Some(order) = *self.given.lock() {
                return order;
            }
            self.notify.notified().await;
        }
    }
}
