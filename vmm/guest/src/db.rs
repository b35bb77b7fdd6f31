//! The store, its log and the clock of this round, as the commands see them; and what the server remembers of a client.
//! Knows neither connections nor the disk itself.

use alloc::vec::Vec;

use crate::limits::EXPIRY_STEP;
use crate::log::{Log, Readiness};
use crate::store::op::Op;
use crate::store::{Growth, Store};
use crate::units::{Group, Time};

/// What a client has said about itself.
#[derive(Debug, Default)]
pub struct Session {
    /// Number of the connection, since power-on.
    pub id: u64,
    /// What CLIENT SETNAME or HELLO said.
    pub name: Vec<u8>,
    /// The client asked for the end.
    pub closing: bool,
    /// What its last command still has to do.
    pub work: Option<Work>,
}

/// A command that takes more than one round.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// How many steps are left.
    pub left: u64,
    /// What came of those that are done.
    pub value: u64,
}

/// How much memory there is.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// For keys and values.
    pub store_max: usize,
    /// For large commands and replies of all connections together.
    pub buffers_max: usize,
    /// With so much on its way the log takes no more writes for now.
    pub log_high: usize,
    /// What the allocator has left, measured.
    pub free: fn() -> usize,
    /// What neither the store nor large commands and replies may take: it is for the log, for frames on their way out,
    /// and for what is not counted.
    pub reserve: usize,
}

/// All that commands work on.
#[derive(Debug)]
pub struct Db {
    /// The keys.
    pub store: Store,
    /// The log.
    pub log: Log,
    /// Bounds.
    pub memory: Memory,
    /// Time of this round.
    pub now: Time,
    /// Time of power-on.
    pub started: Time,
    /// The processor's own counter, which is another one on each host.
    pub counter: fn() -> u64,
    /// The group of the last change.
    pub last_change: Group,
    /// Connections open now.
    pub clients: usize,
    /// Connections since power-on.
    pub accepted: u64,
    /// Commands since power-on.
    pub executed: u64,
    /// When SHUTDOWN was called.
    pub shutdown: Option<Time>,
    /// How far the search for keys whose time is over has come.
    sweep: Option<alloc::boxed::Box<[u8]>>,
}

impl Db {
    /// A database as recovery left it.
    pub fn new(store: Store, mut log: Log, memory: Memory, now: Time, counter: fn() -> u64) -> Self {
        log.set_high(memory.log_high);
        Db {
            store,
            log,
            memory,
            now,
            started: now,
            counter,
            last_change: Group::ZERO,
            clients: 0,
            accepted: 0,
            executed: 0,
            shutdown: None,
            sweep: None,
        }
    }

    /// Makes a change, in memory and in the log; answers the group it belongs to.
    pub fn change(&mut self, op: &Op<'_>) -> Group {
        let group = self.log.group();
        self.store.apply(op, group);
        self.log.append(op);
        self.last_change = group;
        group
    }

    /// What is free beside the reserve. What the log holds already is of its part of the reserve.
    pub fn spare(&self) -> usize {
        (self.memory.free)()
            .saturating_add(self.log.held())
            .saturating_sub(self.memory.reserve)
    }

    /// Whether the store may grow by so much.
    pub fn has_memory(&self, growth: Growth) -> bool {
        self.store.memory() + growth.kept <= self.memory.store_max && growth.taken <= self.spare()
    }

    /// Makes room in the log for changes of so many bytes; false when there is none, and then nothing may be changed.
    pub fn reserve_log(&mut self, bytes: usize) -> bool {
        self.log.reserve(bytes, self.memory.free)
    }

    /// Deletes a few keys whose time is over, if there are any. Called every now and then.
    pub fn sweep(&mut self) {
        if self.store.expiring() == 0 {
            return;
        }
        for _ in 0..EXPIRY_STEP {
            // Asked for each: a few long keys fill a group.
            if self.log.readiness() != Readiness::Ready {
                return;
            }
            let search = self.store.find_over(self.sweep.as_deref(), EXPIRY_STEP, self.now);
            let Some(key) = search.over else {
                self.sweep = search.last;
                return;
            };
            let op = Op::Delete { key: &key };
            // Without memory the search does not go on: the key is found again.
            if !self.reserve_log(op.encoded_len()) {
                return;
            }
            self.change(&op);
            self.sweep = search.last;
        }
    }
}
