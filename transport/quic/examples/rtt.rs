//! How long a record takes from its append to its ack, over QUIC on loopback: what an output waits at least.
//! Run with `cargo run --release -p lockstep-quic --example rtt`. Prints microseconds.
#![allow(
    clippy::disallowed_methods,
    reason = "only the thread that asks sleeps, never the driver's"
)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use lockstep_protocol::{
    DeviceId, Hello, Input, LogOffset, NodeName, PeerLost, Position, Role, Timing, WindowLimit,
};
use lockstep_quic::dates::Validity;
use lockstep_quic::identity::Identity;
use lockstep_quic::link::{
    BackupEvents, BackupLink, Delivered, PairConfig, PrimaryEvents, PrimaryLink, Room, connect_primary,
    listen_backup,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Acked = (LogOffset, Instant);

const ROUNDS: u64 = 20_000;
const FRAMES: u64 = 200_000;
const PATIENCE: Duration = Duration::from_secs(10);

struct Acks(Sender<Acked>);

impl PrimaryEvents for Acks {
    fn acked(&mut self, upto: LogOffset) {
        let _ = self.0.send((upto, Instant::now()));
    }
    fn lease(&mut self, _: lockstep_protocol::Instant) {}
    fn peer_lost(&mut self, why: PeerLost) {
        eprintln!("{why}");
    }
}

struct Door(Sender<SocketAddr>);

impl BackupEvents for Door {
    fn listening(&mut self, at: SocketAddr) {
        let _ = self.0.send(at);
    }
    fn peer_lost(&mut self, why: PeerLost) {
        eprintln!("{why}");
    }
}

fn main() -> Result<(), Failure> {
    let (primary, backup, acks) = pair()?;
    let vm = thread::spawn(move || execute(&backup));
    let mut waits = round_trips(&primary, &acks, Duration::ZERO)?;
    report("busy: the next record follows the ack", &mut waits);
    let mut waits = round_trips(&primary, &acks, Duration::from_micros(200))?;
    report("calm: 200 us between ack and next record", &mut waits);
    println!("QUIC's own round trip: {} us", primary.rtt().as_micros());
    flood(&primary)?;
    drop(primary);
    vm.join().map_err(|_| "the VM's thread died")?;
    Ok(())
}

/// One mark at a time, each waited for.
fn round_trips(
    primary: &PrimaryLink,
    acks: &Receiver<Acked>,
    pause: Duration,
) -> Result<Vec<Duration>, Failure> {
    let rounds = if pause.is_zero() { ROUNDS } else { ROUNDS / 10 };
    (0..rounds)
        .map(|_| {
            thread::sleep(pause);
            let begun = Instant::now();
            let needs = {
                let mut machine = primary.lock();
                let position = Position::new(machine.end().get() + 1);
                machine.append(position, true, Input::Mark)
            };
            primary.notify();
            loop {
                let (upto, at) = acks.recv_timeout(PATIENCE)?;
                if upto >= needs {
                    return Ok(at.saturating_duration_since(begun));
                }
            }
        })
        .collect()
}

fn report(what: &str, waits: &mut [Duration]) {
    waits.sort_unstable();
    let at = |share: usize| waits[(waits.len() - 1) * share / 1000].as_micros();
    println!(
        "append to ack, {what}: p50 {} us, p99 {} us, p99.9 {} us",
        at(500),
        at(990),
        at(999)
    );
}

/// As many frames as the window takes.
fn flood(primary: &PrimaryLink) -> Result<(), Failure> {
    let frame = [0_u8; 1514];
    let begun = Instant::now();
    for _ in 0..FRAMES {
        while primary.wait_room(PATIENCE) != Room::Open {
            if let Some(why) = primary.lost() {
                return Err(why.into());
            }
        }
        let mut machine = primary.lock();
        let position = Position::new(machine.end().get() + 1);
        machine.append(
            position,
            true,
            Input::Frame {
                device: DeviceId::ZERO,
                bytes: &frame,
            },
        );
        drop(machine);
        primary.notify();
    }
    let spent = begun.elapsed().as_secs_f64();
    let rate = FRAMES as f64 / spent;
    println!(
        "flood of 1514-byte frames: {rate:.0} records/s, {:.0} MB/s",
        rate * 1514.0 / 1e6
    );
    Ok(())
}

/// The backup's VM: takes records and applies them at once.
fn execute(backup: &BackupLink) {
    let mut executed = LogOffset::ZERO;
    loop {
        match backup.wait_record(PATIENCE) {
            Delivered::Record(record) => {
                executed = executed.next();
                backup.executed(executed, record.position);
            }
            Delivered::PeerLost(_) | Delivered::Nothing => return,
        }
    }
}

fn pair() -> Result<(PrimaryLink, BackupLink, Receiver<Acked>), Failure> {
    let a = Identity::from_pems("a", &Identity::generate("a", Validity::years(1))?)?;
    let b = Identity::from_pems("b", &Identity::generate("b", Validity::years(1))?)?;
    let (door, opened) = channel();
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let ours = config(anywhere, &b, &a, hello("b", Role::Backup)?);
    let listening = thread::spawn(move || listen_backup(ours, Box::new(Door(door))));
    let (sender, acks) = channel();
    let ours = config(opened.recv()?, &a, &b, hello("a", Role::Primary)?);
    let primary = connect_primary(ours, Box::new(Acks(sender)))?;
    let backup = listening.join().map_err(|_| "the listening thread died")??;
    Ok((primary, backup, acks))
}

fn config(address: SocketAddr, us: &Identity, them: &Identity, hello: Hello) -> PairConfig {
    PairConfig {
        address,
        identity: us.clone(),
        peer: them.as_peer(),
        hello,
        window: WindowLimit::default(),
        patience: PATIENCE,
    }
}

fn hello(node: &str, role: Role) -> Result<Hello, Failure> {
    Ok(Hello {
        // A loaded machine is no dead one.
        timing: Timing {
            timeout: Duration::from_secs(2),
            ..Timing::default()
        },
        ..Hello::bare(NodeName::new(node)?, role)
    })
}
