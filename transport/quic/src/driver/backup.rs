//! The backup's session: log and heartbeats in, acks and echoes out. A backup that is full stops reading the log
//! stream alone; heartbeats are echoed all the same.

use std::cell::RefCell;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_protocol::{Backup, Heartbeat, LogFault, LogOffset, Message, NewerTerm};
use quinn::{Connection, RecvStream};
use tokio::task::yield_now;
use tokio::time::sleep;

use super::{
    Ending, GRACE, LastWord, Report, broken, close, hear_control, misbehaved, obey, sleep_until, tell,
};
use crate::clock;
use crate::link::{BackupEvents, BackupLink, BackupShared, PairConfig, SessionOver};
use crate::session::{self, BackupSession};
use crate::streams::{MessageReader, MessageWriter, StreamFault};

/// How many pieces of the log are taken at once: one lock and one ack for all of them.
const PIECES: usize = 32;

/// The life of the driver: makes a session, reports it, drives it to its end.
pub(super) async fn run(config: PairConfig, mut events: Box<dyn BackupEvents>, report: Report<BackupLink>) {
    let mut session = match session::listen(&config, |at| events.listening(at)).await {
        Ok(session) => session,
        Err(error) => return tell(&report, Err(error)),
    };
    let hello = &config.hello;
    let machine = Backup::new(hello.term, hello.timing, hello.start, clock::now()).with_window(config.window);
    let shared = Arc::new(BackupShared::new(machine));
    let link = BackupLink::new(shared.clone(), session.connection.clone(), session.theirs.clone());
    let _last_word = LastWord(|why| shared.end(why));
    tell(&report, Ok(link));

    let driver = Driver {
        shared: &shared,
        connection: session.connection.clone(),
        events: RefCell::new(events),
    };
    let ending = driver.drive(&mut session, &config).await;
    if let Ending::Lost(why) = &ending {
        driver.events.borrow_mut().peer_lost(why.clone());
    }
    drop(driver);
    shared.end(ending.loss());
    close(&session.endpoint, &ending).await;
}

struct Driver<'a> {
    shared: &'a BackupShared,
    connection: Connection,
    events: RefCell<Box<dyn BackupEvents>>,
}

/// Nobody feeds a machine that was taken away.
fn over(_: SessionOver) -> Ending {
    Ending::Ordered
}

impl Driver<'_> {
    async fn drive(&self, session: &mut BackupSession, config: &PairConfig) -> Ending {
        let (control_out, control_in) = &mut session.control;
        let (beats_out, beats_in) = &mut session.beats;
        let limit = config.hello.timing.timeout;
        // What proves life comes before what may find it missing.
        tokio::select! {
            biased;
            ending = self.echo_beats(beats_in, beats_out) => ending,
            ending = self.take_log(&mut session.log) => ending,
            ending = self.send_acks(&mut session.acks) => ending,
            ending = hear_control(control_in, &self.connection) => ending,
            ending = async {
                let order = self.shared.orders.wait().await;
                obey(order, control_out, std::future::ready(()), limit).await
            } => ending,
            ending = self.watch() => ending,
            error = self.connection.closed() => broken(&self.connection)(error.into()),
        }
    }

    /// The log comes in while there is room for it (I8).
    async fn take_log(&self, log: &mut RecvStream) -> Ending {
        let mut pieces: [Bytes; PIECES] = std::array::from_fn(|_| Bytes::new());
        loop {
            match self.shared.may_receive() {
                Ok(true) => {}
                Ok(false) => {
                    self.shared.drained.notified().await;
                    continue;
                }
                Err(gone) => return over(gone),
            }
            let count = match log.read_chunks(&mut pieces).await {
                Ok(Some(count)) => count,
                Ok(None) => return broken(&self.connection)(StreamFault::Ended),
                Err(error) => return broken(&self.connection)(error.into()),
            };
            match self
                .shared
                .with(|backup| take_pieces(backup, &mut pieces[..count]))
            {
                Ok(Ok((upto, owes_ack))) => {
                    if owes_ack {
                        // It leaves first: an output waits for it, and to wake a thread takes as long as to send a packet.
                        self.shared.news.ring();
                        yield_now().await;
                    }
                    self.shared.deliver();
                    self.events.borrow_mut().received(upto);
                }
                Ok(Err(fault)) => return misbehaved(fault.to_string()),
                Err(gone) => return over(gone),
            }
        }
    }

    /// One ack for all that came since the last one, when it is due; of a backup that has diverged what there is to say of that.
    async fn send_acks(&self, acks: &mut MessageWriter) -> Ending {
        loop {
            self.shared.news.answer().await;
            loop {
                let word = match self.shared.with(next_word) {
                    Ok(Some(word)) => word,
                    Ok(None) => break,
                    Err(gone) => return over(gone),
                };
                if let Err(fault) = acks.write(&word).await {
                    return broken(&self.connection)(fault);
                }
            }
        }
    }

    /// Heartbeats are echoed at once; progress of the VM goes with them.
    async fn echo_beats(&self, from: &mut MessageReader, to: &mut MessageWriter) -> Ending {
        loop {
            let beat = match from.next().await {
                Ok(Message::Heartbeat(beat)) => beat,
                Ok(_) => return misbehaved("an unexpected message on the heartbeat stream"),
                Err(fault) => return broken(&self.connection)(fault),
            };
            let echo = match self.shared.with(|backup| take_beat(backup, &beat)) {
                Ok(Ok(echo)) => echo,
                Ok(Err(fault)) => return misbehaved(fault.to_string()),
                Err(gone) => return over(gone),
            };
            if let Some(echo) = echo
                && let Err(fault) = to.write(&Message::Heartbeat(echo)).await
            {
                return broken(&self.connection)(fault);
            }
            self.shared.news.ring();
        }
    }

    /// Time passes: silence becomes loss.
    async fn watch(&self) -> Ending {
        loop {
            let now = clock::now();
            let (silent, next) = match self
                .shared
                .with(|backup| (backup.handle_timeout(now), backup.next_timeout()))
            {
                Ok(facts) => facts,
                Err(gone) => return over(gone),
            };
            if silent.is_none() {
                sleep_until(next).await;
                continue;
            }
            sleep(GRACE).await;
            match self.shared.with(|backup| backup.handle_timeout(clock::now())) {
                Ok(Some(why)) => return Ending::Lost(why),
                Ok(None) => {}
                Err(gone) => return over(gone),
            }
        }
    }
}

fn next_word(backup: &mut Backup) -> Option<Message> {
    backup
        .poll_confession()
        .or_else(|| backup.poll_ack().map(Message::Ack))
}

/// How far the log was received, and whether an ack is due.
fn take_pieces(backup: &mut Backup, pieces: &mut [Bytes]) -> Result<(LogOffset, bool), LogFault> {
    // Read after the pieces came, as I7 asks.
    let now = clock::now();
    pieces
        .iter_mut()
        .try_for_each(|piece| backup.handle_log_bytes(now, std::mem::take(piece)))?;
    Ok((backup.received(), backup.owes_ack()))
}

fn take_beat(backup: &mut Backup, beat: &Heartbeat) -> Result<Option<Heartbeat>, NewerTerm> {
    let now = clock::now();
    backup.handle_heartbeat(now, beat)?;
    Ok(backup.poll_heartbeat(now))
}
