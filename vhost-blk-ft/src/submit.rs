//! From an order to the disk: the requests of a protected VM, which are held until they may be issued.
//!
//! Called by `staging.rs` on each wake-up; `plain.rs` is its counterpart for any other front-end. Reads are inputs and
//! are answered at once; whatever changes a shared disk is an output and waits in the outbox. `may_issue` is asked right
//! before every system call that changes a shared disk, and nowhere else is that decided (`held.rs`).
//!
//! A mirrored disk is this host's own, nobody outside sees it: its changes go through the same outbox and never wait
//! there. A backup's process mirrors: it changes its image as the guest asks, in the same order, and says `Mirrored` where a
//! primary's would answer. What only asks is not executed there; the answer comes in the log.

use std::collections::VecDeque;
use std::io;

use lockstep_protocol::{LogOffset, Outbox, OutboxLimit};
use lockstep_staging::chain::{Chain, Table};
use lockstep_staging::mirrored::MIRRORED_BYTES_MAX;
use lockstep_staging::{DeviceEnd, Mirrored, Mode, Order, StageError, boottime};
use vhost_user_backend::VringT;
use virtio_queue::QueueT;
use vm_memory::GuestAddress;

use crate::change::Change;
use crate::complete::{Failures, fill, write_padded};
use crate::disk::Disk;
use crate::held::{self, Held, Work};
use crate::inflight::Inflight;
use crate::limits::TRANSFER_MAX;
use crate::payload::Payload;
use crate::request::{Bounds, Command, NoAnswer, Reply, Request, Status};
use crate::sink::{self, Memory, Ring, Ticket};

/// The requests of one protected VM, from order to completion. Dropping it drops what it holds.
#[derive(Debug)]
pub struct Submit {
    /// Taken, not looked at yet: the outbox or the staging ring is full, or this is the backup of a shared disk.
    waiting: VecDeque<Order>,
    held: Outbox<Held>,
    /// Released and begun, not complete.
    issuing: Option<Held>,
    inflight: Inflight,
    failures: Failures,
    mode: Mode,
}

/// Whether a request went on or has to wait for room.
enum Took {
    It,
    NoRoom,
}

impl Default for Submit {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            held: Outbox::new(OutboxLimit::default()),
            issuing: None,
            inflight: Inflight::default(),
            failures: Failures::default(),
            mode: Mode::Quiet,
        }
    }
}

impl Submit {
    /// Does everything that can be done now. `memory` is missing until the VMM has shared it.
    pub fn pump(
        &mut self,
        end: &mut DeviceEnd,
        disk: &mut Disk,
        memory: Option<&Memory>,
        rings: &[Ring],
    ) -> Result<(), StageError> {
        self.collect(end)?;
        // After the orders: one that was given in another mode than the one before finds that mode here.
        self.change_mode(end.mode(), disk);
        if let Some(id) = end.pairing()
            && let Err(error) = disk.begin_pairing(id)
        {
            tracing::warn!(%error, "What changes on this image is not remembered");
        }
        // Whatever comes of it, the gate was seen: only a change after this keeps us from sleeping.
        end.gate();
        let works = self.mode == Mode::Live || self.mirrors(disk);
        match memory {
            Some(memory) if works => {
                while self.take_all(end, disk, memory, rings)? | self.issue_all(end, disk)? {}
            }
            // Nobody waits for room any more; asking for little of it takes an earlier complaint back.
            _ => drop(end.has_room_for_completion(0)?),
        }
        let begun = self.issuing.as_ref().map(|held| held.needs);
        let count = self.held.len() + usize::from(begun.is_some());
        end.publish_waiting(begun.or(self.held.waiting_for()), count);
        Ok(())
    }

    /// How many requests are in flight, and how many of them are held outputs.
    pub fn counts(&self) -> (usize, usize) {
        (
            self.inflight.count(),
            self.held.len() + usize::from(self.issuing.is_some()),
        )
    }

    /// Is this a backup's process with an image of its own?
    fn mirrors(&self, disk: &Disk) -> bool {
        self.mode == Mode::Quiet && disk.is_mirrored()
    }

    /// What the VMM wants of us. A host that halted stays halted, whatever is said afterwards.
    fn change_mode(&mut self, mode: Mode, disk: &mut Disk) {
        match (self.mode, mode) {
            (Mode::Halted, _) => {}
            (Mode::Quiet, Mode::Live) if disk.is_mirrored() => disk.end_pairing(),
            (Mode::Quiet, Mode::Live) => disk.forget_cached(),
            (_, Mode::Halted) => {
                let dropped = self.held.discard() + usize::from(self.issuing.take().is_some());
                self.waiting.clear();
                self.inflight.forget();
                tracing::info!(dropped, "Halted: what was held will never be issued");
            }
            _ => {}
        }
        if self.mode != Mode::Halted {
            self.mode = mode;
        }
    }

    /// Takes orders off the ring; there are never more of them than queues have heads.
    fn collect(&mut self, end: &mut DeviceEnd) -> Result<(), StageError> {
        while let Some(order) = end.pop_order()? {
            if self.mode == Mode::Halted {
                continue;
            }
            match self.inflight.take(ticket_of(&order)) {
                Ok(()) => self.waiting.push_back(order),
                Err(refused) => tracing::debug!(%refused, ?order, "An order is ignored"),
            }
        }
        Ok(())
    }

    /// Looks at waiting orders, in order, until one has to wait. Says whether any did not.
    fn take_all(
        &mut self,
        end: &mut DeviceEnd,
        disk: &mut Disk,
        memory: &Memory,
        rings: &[Ring],
    ) -> Result<bool, StageError> {
        let mut any = false;
        while let Some(order) = self.waiting.front().copied() {
            let request = read_request(memory, rings, &order, disk);
            match self.take(end, disk, memory, &order, request)? {
                Took::It => self.waiting.pop_front(),
                Took::NoRoom => break,
            };
            any = true;
        }
        Ok(any)
    }

    fn take(
        &mut self,
        end: &mut DeviceEnd,
        disk: &mut Disk,
        memory: &Memory,
        order: &Order,
        request: Result<Request, NoAnswer>,
    ) -> Result<Took, StageError> {
        let ticket = ticket_of(order);
        let Request { command, reply } = match request {
            Ok(request) => request,
            Err(reason) => {
                tracing::debug!(%reason, ?order, "A chain cannot be answered");
                if !end.has_room_for_completion(0)? {
                    return Ok(Took::NoRoom);
                }
                sink::stage_empty(end, ticket)?;
                self.inflight.complete(ticket);
                return Ok(Took::It);
            }
        };
        let work = match command {
            Command::Write(extent, segments) => {
                if !self
                    .held
                    .has_room(usize::try_from(extent.bytes).unwrap_or(usize::MAX))
                {
                    return Ok(Took::NoRoom);
                }
                match Payload::copy(memory, &segments) {
                    Ok(payload) => Work::Change(Change::write(extent.at, payload)),
                    Err(_) => {
                        return self.answer(end, disk, ticket, &Command::Refuse(Status::IoError), &reply);
                    }
                }
            }
            Command::Discard(extents) => Work::Change(Change::discard(extents)),
            Command::WriteZeroes { extents, unmap } => Work::Change(Change::write_zeroes(extents, unmap)),
            Command::Flush => return self.flush(end, disk, ticket, reply),
            Command::Read(_) | Command::GetId | Command::Refuse(_) => {
                return self.answer(end, disk, ticket, &command, &reply);
            }
        };
        Ok(self.hold(Held {
            ticket,
            reply,
            needs: order.needs,
            work,
        }))
    }

    fn hold(&mut self, held: Held) -> Took {
        match self.held.hold(held.needs, held.weight(), held) {
            Ok(()) => Took::It,
            Err(_) => Took::NoRoom,
        }
    }

    /// A flush covers every write taken before it, so it goes behind those that are held. It needs no ack itself.
    fn flush(
        &mut self,
        end: &mut DeviceEnd,
        disk: &mut Disk,
        ticket: Ticket,
        reply: Reply,
    ) -> Result<Took, StageError> {
        if !self.held.is_empty() || self.issuing.is_some() {
            return Ok(self.hold(Held {
                ticket,
                reply,
                needs: LogOffset::ZERO,
                work: Work::Flush,
            }));
        }
        if !end.has_room_for_completion(self.room_for(&reply))? {
            return Ok(Took::NoRoom);
        }
        let outcome = disk.flush();
        self.finish(end, disk, ticket, &reply, Work::Flush.doing(), outcome)?;
        Ok(Took::It)
    }

    /// Answers what needs nobody's leave. On a backup the answer comes in the log.
    fn answer(
        &mut self,
        end: &mut DeviceEnd,
        disk: &mut Disk,
        ticket: Ticket,
        command: &Command,
        reply: &Reply,
    ) -> Result<Took, StageError> {
        if !end.has_room_for_completion(reply.length as usize)? {
            return Ok(Took::NoRoom);
        }
        if self.mirrors(disk) {
            sink::stage_mirrored(end, ticket, &Mirrored::Nothing)?;
        } else {
            sink::stage(end, ticket, reply, |room| {
                fill(disk, &mut self.failures, command, room)
            })?;
        }
        end.tell();
        self.inflight.complete(ticket);
        Ok(Took::It)
    }

    /// Issues what may be issued, oldest first. Says whether anything was completed.
    fn issue_all(&mut self, end: &mut DeviceEnd, disk: &mut Disk) -> Result<bool, StageError> {
        let mut any = false;
        loop {
            if self.issuing.is_none() {
                let gate = held::gate_of(end, disk);
                self.issuing = self.held.poll_release(&gate, boottime());
            }
            let Some(mut held) = self.issuing.take() else {
                return Ok(any);
            };
            let room = self.room_for(&held.reply);
            let outcome = match end.has_room_for_completion(room)? {
                true => held.issue(end, disk),
                false => None,
            };
            let Some(outcome) = outcome else {
                self.issuing = Some(held);
                return Ok(any);
            };
            self.finish(end, disk, held.ticket, &held.reply, held.work.doing(), outcome)?;
            // What changes on an image of one's own leaves nowhere.
            if !disk.is_mirrored() {
                end.count_released(1);
            }
            any = true;
        }
    }

    /// How long an answer without data may be.
    fn room_for(&self, reply: &Reply) -> usize {
        match self.mode {
            Mode::Quiet => MIRRORED_BYTES_MAX,
            Mode::Live | Mode::Halted => reply.length as usize,
        }
    }

    /// Completes a request that has no data; there is room.
    fn finish(
        &mut self,
        end: &mut DeviceEnd,
        disk: &mut Disk,
        ticket: Ticket,
        reply: &Reply,
        doing: &'static str,
        outcome: io::Result<()>,
    ) -> Result<(), StageError> {
        if outcome.is_err() {
            // The other host's image may have it.
            disk.end_pairing();
        }
        if let Some(changes) = disk.changes() {
            changes.tell(|block| end.note_changed(block));
        }
        let mirrored = match &outcome {
            Ok(()) => Mirrored::Done,
            Err(error) => Mirrored::Failed(error.to_string()),
        };
        let status = self.failures.status_of(doing, outcome);
        if self.mode == Mode::Quiet {
            sink::stage_mirrored(end, ticket, &mirrored)?;
        } else {
            sink::stage(end, ticket, reply, |room| {
                write_padded(room, &[]);
                status
            })?;
        }
        self.inflight.complete(ticket);
        // Who writes and flushes waits for the flush: one wake-up for both.
        if !self.flushes_next() {
            end.tell();
        }
        Ok(())
    }

    /// Is a flush the next that is held?
    fn flushes_next(&self) -> bool {
        matches!(self.held.front(), Some(held) if matches!(held.work, Work::Flush))
    }
}

/// Where a queue's descriptors lie.
pub(crate) fn table_of(ring: &Ring) -> Table {
    let state = ring.get_ref();
    let queue = state.get_queue();
    Table {
        start: GuestAddress(queue.desc_table()),
        size: queue.size(),
    }
}

/// What a request has to keep to.
pub(crate) fn bounds(disk: &Disk, transfer_max: u32) -> Bounds {
    Bounds {
        disk_bytes: disk.bytes(),
        read_only: disk.is_read_only(),
        transfer_max,
    }
}

fn ticket_of(order: &Order) -> Ticket {
    Ticket {
        queue: order.queue,
        head: order.head,
    }
}

fn read_request(memory: &Memory, rings: &[Ring], order: &Order, disk: &Disk) -> Result<Request, NoAnswer> {
    // A queue that was never set up has a table of no descriptors.
    let nowhere = Table {
        start: GuestAddress(0),
        size: 0,
    };
    let table = rings
        .get(usize::from(order.queue.get()))
        .map_or(nowhere, table_of);
    let chain = Chain::read(memory, table, order.head)?;
    let Request { command, reply } = Request::parse(memory, chain, &bounds(disk, TRANSFER_MAX))?;
    let command = match disk.is_mirrored() {
        true => command.mirrored(),
        false => command,
    };
    Ok(Request { command, reply })
}
