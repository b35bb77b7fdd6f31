//! What the clients of a campaign write down: every operation with its beginning and its end. Pure data, for whoever
//! judges it.

/// What was asked, and what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The key holds this from now on.
    Set(i64),
    /// It held this.
    Get(Option<i64>),
    /// It holds this from now on: one more than before, and nothing counts as 0.
    Incr(i64),
    /// It holds nothing from now on; whether it held anything.
    Del(bool),
    /// The same, refused or not answered: nobody knows whether it happened, or will.
    MaybeSet(i64),
    /// The same.
    MaybeIncr,
    /// The same.
    MaybeDel,
}

/// One operation of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// On which key; keys have nothing to do with each other.
    pub key: u32,
    /// When it was asked, in ns since the clients began.
    pub called: u64,
    /// When the answer was there; the end of time for what may still happen.
    pub returned: u64,
    /// What it was.
    pub action: Action,
    /// Whether this is the last look at a key, after everything.
    pub is_last_look: bool,
}
