//! How fast memory goes to a new backup, and what the same kind of connection carries of plain bytes, in turns in one run.
//!
//! Both ends are in this process, on loopback, with the parts that `lockstep run` and `lockstep standby` copy with: a machine of
//! this host's KVM whose writes are tracked, and whose memory is filled with chance, and the memory of a spare that has waited
//! for it. It is measured until the spare says that all of it is in place. The last line on standard output is a JSON object
//! with `--json`.

use anyhow::Context;
use bytes::Bytes;
use clap::Parser;
use lockstep_protocol::ids::{LogOffset, NodeName, Position, Term};
use lockstep_protocol::message::{Hello, Role};
use lockstep_quic::dates::Validity;
use lockstep_quic::identity::Identity;
use lockstep_quic::state::{StateConfig, StateDoor, StateReceiver};
use lockstep_vmm::ft::wait::Waker;
use lockstep_vmm::machine::{Guest, Machine, MachineSpec};
use lockstep_vmm::memory::{self, GuestRam};
use lockstep_vmm::transfer::intake;
use lockstep_vmm::transfer::progress::Progress;
use lockstep_vmm::transfer::source::{Attention, Request, Source, Tracked};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use vm_memory::{Bytes as _, GuestAddress};

/// How fast memory goes to a new backup
#[derive(Debug, Parser)]
struct Args {
    /// How much memory
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory_mib: u64,
    /// How often plain bytes and memory take turns
    #[arg(long, value_name = "N", default_value_t = 3)]
    turns: usize,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
}

const PIECE: usize = 1 << 20;
const LOOK: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let ends = Ends::new()?;
    let machine = Machine::build(MachineSpec {
        vcpus: lockstep_vmm::vcpu::VcpuCount::ONE,
        memory_mib: args.memory_mib,
        guest: Guest::Micro(lockstep_vmm::run::MICRO_GUEST),
        cmdline: String::new(),
        devices: Vec::new(),
    })?;
    fill(machine.memory())?;
    let bytes = chance(args.memory_mib)?;
    let mib = args.memory_mib as f64;
    let (mut plain, mut copied) = (Vec::new(), Vec::new());
    for turn in 0..args.turns {
        plain.push(mib / ends.plain(&bytes)?.as_secs_f64());
        copied.push(mib / ends.copy(&machine, args.memory_mib)?.as_secs_f64());
        eprintln!(
            "turn {}: plain {:.0}, memory {:.0} MiB a second",
            turn + 1,
            plain[turn],
            copied[turn]
        );
    }
    let (plain, copied) = (median(plain), median(copied));
    let ratio = copied / plain;
    match args.json {
        true => println!(
            "{{\"memory_mib\":{},\"turns\":{},\"plain_mib_per_s\":{plain:.0},\"copy_mib_per_s\":{copied:.0},\"ratio\":{ratio:.3}}}",
            args.memory_mib, args.turns
        ),
        false => println!("plain {plain:.0} MiB/s, memory {copied:.0} MiB/s: {ratio:.2} of it"),
    }
    Ok(())
}

/// Who listens, and who dials.
struct Ends {
    source: StateConfig,
    spare: StateConfig,
}

impl Ends {
    fn new() -> anyhow::Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let [source, spare] = ["source", "spare"].map(identity);
        let (source, spare) = (source?, spare?);
        let config = |own: &Identity, peer: &Identity, name: &str, role| -> anyhow::Result<StateConfig> {
            Ok(StateConfig {
                address,
                identity: own.clone(),
                peers: vec![peer.as_peer()],
                hello: hello(name, role)?,
            })
        };
        Ok(Self {
            source: config(&source, &spare, "source", Role::Primary)?,
            spare: config(&spare, &source, "spare", Role::Backup)?,
        })
    }

    /// Bytes that mean nothing, as many as the memory has. They are no fewer in memory, either: what is sent over and over
    /// would never leave the processor's cache.
    fn plain(&self, bytes: &Bytes) -> anyhow::Result<Duration> {
        let pieces = bytes.len() / PIECE;
        let door = StateDoor::open(self.source.clone())?;
        let spare = self.spare.clone();
        let receiver = thread::spawn(move || -> anyhow::Result<()> {
            let mut receiver = dial(&spare)?;
            for _ in 0..pieces {
                receiver.take()?;
            }
            receiver.confirm(Term::ZERO, LogOffset::ZERO, Position::ZERO)?;
            receiver.wait_until_over();
            Ok(())
        });
        let mut sender = door.admit(PATIENCE).context("Nobody dialled")?;
        let start = Instant::now();
        for piece in 0..pieces {
            sender.send(u8::MAX, bytes.slice(piece * PIECE..(piece + 1) * PIECE))?;
        }
        sender.wait_until_held(PATIENCE)?;
        let took = start.elapsed();
        drop(sender);
        receiver.join().ok().context("The receiver died")??;
        Ok(took)
    }

    /// The machine's memory, until it is asked to stand still.
    fn copy(&self, machine: &Machine, mib: u64) -> anyhow::Result<Duration> {
        let spare = self.spare.clone();
        let to = Arc::new(memory::create(mib)?);
        // As a spare does that has waited.
        memory::touch(&to, GuestAddress(0), mib << 20);
        let receiver = thread::spawn({
            let to = Arc::clone(&to);
            move || -> anyhow::Result<()> {
                let mut receiver = dial(&spare)?;
                // It ends without a machine: only its memory is wanted here.
                drop(intake::take_in(&mut receiver, &to, None, &Progress::default()));
                Ok(())
            }
        });
        let attention = Attention::default();
        let progress = Arc::new(Progress::default());
        let source = Source::open(
            self.source.clone(),
            Vec::new(),
            Waker::new()?,
            attention,
            progress,
        )?;
        let answer = match request(&source) {
            Request::Track(answer) => answer,
            Request::Stop(_) => anyhow::bail!("A copy ended before it began"),
        };
        let start = Instant::now();
        let tracked = Tracked {
            memory: Arc::clone(machine.memory()),
            writes: machine.track_writes()?,
            disk: None,
        };
        answer.send(Ok(tracked)).ok().context("The copying thread died")?;
        let stop = request(&source);
        let took = start.elapsed();
        drop((source, stop));
        receiver.join().ok().context("The receiver died")??;
        anyhow::ensure!(same(machine.memory(), &to, mib)?, "The memories differ");
        Ok(took)
    }
}

fn request(source: &Source) -> Request {
    loop {
        if let Some(request) = source.request() {
            return request;
        }
        thread::sleep(LOOK);
    }
}

/// The other side may not listen yet.
fn dial(config: &StateConfig) -> anyhow::Result<StateReceiver> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match StateReceiver::dial(config) {
            Ok(receiver) => return Ok(receiver),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => thread::sleep(LOOK),
        }
    }
}

fn chance(mib: u64) -> anyhow::Result<Bytes> {
    let mut bytes = vec![0; usize::try_from(mib)? << 20];
    SmallRng::seed_from_u64(2).fill_bytes(&mut bytes);
    Ok(bytes.into())
}

fn fill(memory: &GuestRam) -> anyhow::Result<()> {
    let mut chance = SmallRng::seed_from_u64(1);
    let mut piece = vec![0; PIECE];
    for at in pieces(memory) {
        chance.fill_bytes(&mut piece);
        memory.write_slice(&piece, at)?;
    }
    Ok(())
}

fn same(one: &GuestRam, other: &GuestRam, mib: u64) -> anyhow::Result<bool> {
    let mut both = [vec![0; PIECE], vec![0; PIECE]];
    for at in pieces(one).take(mib as usize) {
        one.read_slice(&mut both[0], at)?;
        other.read_slice(&mut both[1], at)?;
        if both[0] != both[1] {
            return Ok(false);
        }
    }
    Ok(true)
}

fn pieces(memory: &GuestRam) -> impl Iterator<Item = GuestAddress> + use<> {
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
    let bytes: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    (0..bytes).step_by(PIECE).map(GuestAddress)
}

fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn identity(name: &str) -> anyhow::Result<Identity> {
    let pems = Identity::generate(name, Validity::years(1))?;
    Ok(Identity::from_pems(name, &pems)?)
}

fn hello(node: &str, role: Role) -> anyhow::Result<Hello> {
    Ok(Hello::bare(NodeName::new(node)?, role))
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}
