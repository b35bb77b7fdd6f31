//! The primary's session: log and heartbeats out, acks and echoes in. Each of its loops does one thing and none
//! waits for another, so that a full log stream delays no heartbeat.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use lockstep_protocol::{Census, DivergenceFault, Heartbeat, Message, Primary};
use quinn::{Connection, SendStream};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::{
    Ending, GRACE, LastWord, Report, broken, close, hear_control, misbehaved, obey, sleep_until, tell,
};
use crate::clock;
use crate::link::{PairConfig, PrimaryEvents, PrimaryLink, PrimaryShared};
use crate::session::{self, PrimarySession};
use crate::streams::{MessageReader, MessageWriter};

/// The life of the driver: makes a session, reports it, drives it to its end.
pub(super) async fn run(config: PairConfig, events: Box<dyn PrimaryEvents>, report: Report<PrimaryLink>) {
    let mut session = match session::connect(&config).await {
        Ok(session) => session,
        Err(error) => return tell(&report, Err(error)),
    };
    let hello = &config.hello;
    let machine =
        Primary::new(hello.term, hello.timing, hello.start, clock::now()).with_window(config.window);
    let shared = Arc::new(PrimaryShared::new(machine));
    let link = PrimaryLink::new(shared.clone(), session.connection.clone(), session.theirs.clone());
    let _last_word = LastWord(|why| shared.end(why));
    tell(&report, Ok(link));

    let driver = Driver {
        shared: &shared,
        connection: session.connection.clone(),
        events: RefCell::new(events),
        beat: Cell::new(None),
        beat_due: Notify::new(),
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
    shared: &'a PrimaryShared,
    connection: Connection,
    events: RefCell<Box<dyn PrimaryEvents>>,
    /// The newest heartbeat that was not written yet: an older one is of no more use.
    beat: Cell<Option<Heartbeat>>,
    beat_due: Notify,
}

impl Driver<'_> {
    async fn drive(&self, session: &mut PrimarySession, config: &PairConfig) -> Ending {
        let (control_out, control_in) = &mut session.control;
        let (beats_out, beats_in) = &mut session.beats;
        let limit = config.hello.timing.timeout;
        // What proves life comes before what may find it missing.
        tokio::select! {
            biased;
            ending = self.hear_beats(beats_in) => ending,
            ending = self.hear_acks(&mut session.acks) => ending,
            ending = self.send_beats(beats_out) => ending,
            ending = self.send_log(&mut session.log) => ending,
            ending = hear_control(control_in, &self.connection) => ending,
            ending = async {
                let order = self.shared.orders.wait().await;
                obey(order, control_out, self.all_acked(), limit).await
            } => ending,
            ending = self.watch() => ending,
            error = self.connection.closed() => broken(&self.connection)(error.into()),
        }
    }

    /// What the vCPU appended goes out.
    async fn send_log(&self, log: &mut SendStream) -> Ending {
        loop {
            self.shared.appended.answer().await;
            while let Some(bytes) = self.poll_transmit() {
                if let Err(fault) = log.write_chunk(bytes).await {
                    return broken(&self.connection)(fault.into());
                }
            }
        }
    }

    fn poll_transmit(&self) -> Option<bytes::Bytes> {
        self.shared.lock().poll_transmit()
    }

    /// Acks move the gate and make room.
    async fn hear_acks(&self, acks: &mut MessageReader) -> Ending {
        loop {
            let ack = match acks.next().await {
                Ok(Message::Ack(ack)) => ack,
                Ok(Message::Diverged(found)) => {
                    if let Err(fault) = self.shared.lock().handle_diverged(clock::now(), &found) {
                        return misbehaved(fault.to_string());
                    }
                    self.events.borrow_mut().diverged(&found);
                    continue;
                }
                Ok(Message::Census(census)) => {
                    if let Err(fault) = self.take_census(&census) {
                        return misbehaved(fault.to_string());
                    }
                    continue;
                }
                Ok(_) => return misbehaved("an unexpected message on the ack stream"),
                Err(fault) => return broken(&self.connection)(fault),
            };
            let now = clock::now();
            let (outcome, before, after) = {
                let mut primary = self.shared.lock();
                let before = primary.acked();
                (primary.handle_ack(now, &ack), before, primary.acked())
            };
            if let Err(fault) = outcome {
                return misbehaved(fault.to_string());
            }
            if after > before {
                self.events.borrow_mut().acked(after);
                self.shared.make_room();
            }
        }
    }

    fn take_census(&self, census: &Census) -> Result<(), DivergenceFault> {
        let mut primary = self.shared.lock();
        primary.handle_census(clock::now(), census)?;
        let is_due = primary.wants_heal();
        drop(primary);
        if is_due {
            self.events.borrow_mut().heal_due();
        }
        Ok(())
    }

    /// Echoes renew the lease.
    async fn hear_beats(&self, beats: &mut MessageReader) -> Ending {
        loop {
            let beat = match beats.next().await {
                Ok(Message::Heartbeat(beat)) => beat,
                Ok(_) => return misbehaved("an unexpected message on the heartbeat stream"),
                Err(fault) => return broken(&self.connection)(fault),
            };
            let now = clock::now();
            let (outcome, lease_until) = {
                let mut primary = self.shared.lock();
                (primary.handle_heartbeat(now, &beat), primary.lease_until())
            };
            if let Err(fault) = outcome {
                return misbehaved(fault.to_string());
            }
            self.events.borrow_mut().lease(lease_until);
        }
    }

    async fn send_beats(&self, beats: &mut MessageWriter) -> Ending {
        loop {
            self.beat_due.notified().await;
            let Some(beat) = self.beat.take() else { continue };
            if let Err(fault) = beats.write(&Message::Heartbeat(beat)).await {
                return broken(&self.connection)(fault);
            }
        }
    }

    /// Time passes: heartbeats fall due, and silence becomes loss.
    async fn watch(&self) -> Ending {
        loop {
            let now = clock::now();
            let (beat, silent, next) = {
                let mut primary = self.shared.lock();
                (
                    primary.poll_heartbeat(now),
                    primary.handle_timeout(now),
                    primary.next_timeout(),
                )
            };
            if beat.is_some() {
                self.beat.set(beat);
                self.beat_due.notify_one();
            }
            if silent.is_some() {
                sleep(GRACE).await;
                let lost = self.shared.lock().handle_timeout(clock::now());
                match lost {
                    Some(why) => return Ending::Lost(why),
                    None => continue,
                }
            }
            sleep_until(next).await;
        }
    }

    /// The backup holds all of the log.
    async fn all_acked(&self) {
        while !self.is_acked() {
            self.shared.acked.answer().await;
        }
    }

    fn is_acked(&self) -> bool {
        let primary = self.shared.lock();
        primary.acked() == primary.end()
    }
}
