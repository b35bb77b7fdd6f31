//! How many strangers stand at a door: each has a place from its first packet until its handshake is over.
//!
//! [`endpoint`](crate::endpoint) gives the places and asks for their number. It turns nobody away.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Those at one door.
#[derive(Clone, Debug, Default)]
pub(crate) struct Crowd(Arc<AtomicUsize>);

/// A stranger's place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Crowd);

impl Crowd {
    pub(crate) fn enter(&self) -> Place {
        self.0.fetch_add(1, Ordering::Relaxed);
        Place(self.clone())
    }

    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
