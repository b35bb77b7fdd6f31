//! What the outside saw must be the history of one server (I4, I5): every state that was shown, in a reply or on the
//! shared disk, lies on one chain, and whoever takes over goes on with it.
//!
//! When no host is left and the VM is switched on again, what was kept on the disk must be there. What was not kept is
//! gone then, as it is with any server that loses power.

use crate::sim::chain::{Chain, State};

/// The chain that the outside knows.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Every state up to the newest that was shown; nothing before the first life has begun.
    shown: Option<Chain>,
    /// The newest state of which the outside was told that it is kept.
    kept: State,
    /// A new life has begun and has not read its disk yet: what must be on it.
    unread: Option<State>,
    lives: u64,
}

impl History {
    /// The VM is switched on; `found` is the newest state on the shared disk.
    pub(crate) fn switched_on(&mut self, found: State) -> Result<(), String> {
        if found.count < self.kept.count {
            return Err(format!(
                "The disk has the state after {} requests, but {} were said to be kept",
                found.count, self.kept.count
            ));
        }
        let shown = self.shown.as_ref().and_then(|shown| shown.after(found.count));
        if shown.is_some_and(|shown| shown != found) {
            return Err(format!(
                "The disk has another state after {} requests than the outside saw",
                found.count
            ));
        }
        self.unread = Some(found);
        self.lives += 1;
        Ok(())
    }

    /// How often the VM was switched on.
    pub(crate) fn lives(&self) -> u64 {
        self.lives
    }

    /// A guest that lives shows a state of its chain to the outside.
    pub(crate) fn shows(&mut self, chain: &Chain, state: State, kept: bool) -> Result<(), String> {
        if !chain.has(state) {
            return Err(format!(
                "A state is shown that the guest never had, after {} requests",
                state.count
            ));
        }
        self.begin_life(chain)?;
        let shown = self.shown.get_or_insert_with(|| chain.clone());
        survives(shown, chain, state)?;
        shown.follow(chain, state.count);
        if kept {
            self.kept = self.kept.max(state);
        }
        Ok(())
    }

    /// A host goes on with `chain` in the place of another: nothing that was shown may be missing.
    pub(crate) fn taken_over(&self, chain: Option<&Chain>) -> Result<(), String> {
        match (&self.shown, chain, self.unread) {
            (Some(shown), Some(chain), None) if !chain.has(shown.newest()) => Err(format!(
                "The survivor does not have the state after {} requests that the outside saw; it has executed {}",
                shown.newest().count,
                chain.newest().count
            )),
            (Some(shown), None, None) => Err(format!(
                "The survivor has not even read its disk, but the outside saw {} requests answered",
                shown.newest().count
            )),
            _ => Ok(()),
        }
    }

    /// The first state that a new life shows tells what it found on its disk.
    fn begin_life(&mut self, chain: &Chain) -> Result<(), String> {
        let Some(found) = self.unread.take() else {
            return Ok(());
        };
        if !chain.has(found) {
            return Err(format!(
                "The guest did not find on its disk the state after {} requests that is there",
                found.count
            ));
        }
        self.shown = Some(Chain::from(found));
        Ok(())
    }
}

/// Is `state`, of `chain`, on the same line as all that was shown?
fn survives(shown: &Chain, chain: &Chain, state: State) -> Result<(), String> {
    let newest = shown.newest();
    let same = match state.count <= newest.count {
        true => shown.has(state),
        false => chain.has(newest),
    };
    match same {
        true => Ok(()),
        false => Err(format!(
            "The outside saw two servers: they differ by the state after {} requests, {} were shown before",
            state.count.min(newest.count),
            newest.count
        )),
    }
}
