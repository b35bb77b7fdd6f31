//! What the simulated server is: a chain of states, each made of the one before and of one request. A state's digest
//! says everything that ever happened to the server, so whoever sees digests sees whether there was one server.
//!
//! The guest grows a chain; the oracle compares the chains of several hosts. Nothing here decides anything.

use super::dice::mix;

/// How many requests the server has executed since the beginning of its story, all lives included.
pub(crate) type Count = u64;

/// The server after so many requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct State {
    /// After how many.
    pub(crate) count: Count,
    /// The digest of all of them.
    pub(crate) digest: u64,
}

/// The states of one server from some state on, none left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    base: Count,
    digests: Vec<u64>,
}

impl Chain {
    /// The chain that begins with `state`.
    pub(crate) fn from(state: State) -> Self {
        Self {
            base: state.count,
            digests: vec![state.digest],
        }
    }

    /// Executes one request, of which `request` is a digest.
    pub(crate) fn execute(&mut self, request: u64) -> State {
        let before = self.newest();
        self.digests.push(mix(before.digest ^ mix(request)));
        self.newest()
    }

    /// The newest state; the empty server's before anything happened.
    pub(crate) fn newest(&self) -> State {
        match self.digests.last() {
            Some(digest) => State {
                count: self.base + self.digests.len() as u64 - 1,
                digest: *digest,
            },
            None => State::default(),
        }
    }

    /// The state after `count` requests, if it is on this chain.
    pub(crate) fn after(&self, count: Count) -> Option<State> {
        let index = usize::try_from(count.checked_sub(self.base)?).ok()?;
        let digest = *self.digests.get(index)?;
        Some(State { count, digest })
    }

    /// Is `state` on this chain?
    pub(crate) fn has(&self, state: State) -> bool {
        self.after(state.count) == Some(state)
    }

    /// Goes on as `other` does, up to `count`; both have our newest state.
    pub(crate) fn follow(&mut self, other: &Self, count: Count) {
        for next in self.newest().count + 1..=count {
            self.digests.extend(other.after(next).map(|state| state.digest));
        }
    }
}
