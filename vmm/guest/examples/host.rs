//! The guest's server as an ordinary process, over a tap and a file: for development, where a debugger and a profiler
//! are at hand. Not part of the product; the devices here are the simplest that work.
//!
//! `ip tuntap add tap0 mode tap; ip addr add 10.77.0.1/24 dev tap0; ip link set tap0 up`, then
//! `cargo run --release --example host -- tap0 disk.img`, then `redis-cli -h 10.77.0.2`.

use std::collections::VecDeque;
use std::env::args;
use std::error::Error;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use lockstep_guest::budget;
use lockstep_guest::cmdline::Cmdline;
use lockstep_guest::db::Db;
use lockstep_guest::disk::{Disk, DiskError, Done, Request, SECTOR_BYTES, Tag};
use lockstep_guest::log::{self, Log};
use lockstep_guest::server::{Next, Server};
use lockstep_guest::stack::{Nic, Stack};
use lockstep_guest::store::Store;
use lockstep_guest::units::Time;
use smoltcp::phy::{Device, DeviceCapabilities, Medium, TunTapInterface, wait};

/// As much as a VM of the usual size has.
const HEAP_BYTES: usize = 62 << 20;

struct TapNic(TunTapInterface);

impl Nic for TapNic {
    fn mac(&self) -> [u8; 6] {
        [2, 0x4c, 0x53, 0, 0, 1]
    }

    fn has_frames(&self) -> bool {
        false
    }

    fn kick(&mut self) {}
}

impl Device for TapNic {
    type RxToken<'a> = <TunTapInterface as Device>::RxToken<'a>;
    type TxToken<'a> = <TunTapInterface as Device>::TxToken<'a>;

    fn receive(&mut self, now: smoltcp::time::Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        self.0.receive(now)
    }

    fn transmit(&mut self, now: smoltcp::time::Instant) -> Option<Self::TxToken<'_>> {
        self.0.transmit(now)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.0.capabilities()
    }
}

/// Does each request at once.
struct FileDisk {
    file: File,
    sectors: u64,
    done: VecDeque<Done>,
}

impl Disk for FileDisk {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn needs_flush(&self) -> bool {
        true
    }

    fn flushes_in_order(&self) -> bool {
        true
    }

    fn submit(&mut self, tag: Tag, request: Request) -> Result<(), Request> {
        let place = |sector: u64| sector * SECTOR_BYTES as u64;
        let (result, bytes) = match request {
            Request::Read { sector, mut bytes } => {
                (self.file.read_exact_at(&mut bytes, place(sector)), bytes)
            }
            Request::Write { sector, bytes } => (self.file.write_all_at(&bytes, place(sector)), bytes),
            Request::Flush => (self.file.sync_data(), Vec::new()),
        };
        self.done.push_back(Done {
            tag,
            result: result.map_err(|_| DiskError),
            bytes,
        });
        Ok(())
    }

    fn kick(&mut self) {}

    fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    fn poll(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    fn wait(&mut self) {}
}

fn main() -> Result<(), Box<dyn Error>> {
    let tap = args().nth(1).ok_or("say which tap")?;
    let mut nic = TapNic(TunTapInterface::new(&tap, Medium::Ethernet)?);
    let fd = nic.0.as_raw_fd();
    let begin = Instant::now();
    let now = || Time::from_nanos(1 + begin.elapsed().as_nanos() as u64);

    let mut store = Store::new();
    let mut disk = FileDisk {
        file: File::open("/dev/null")?,
        sectors: 0,
        done: VecDeque::new(),
    };
    let log = match args().nth(2) {
        None => Log::volatile(),
        Some(path) => {
            disk.file = File::options().read(true).write(true).open(path)?;
            disk.sectors = disk.file.metadata()?.len() / SECTOR_BYTES as u64;
            log::open(&mut disk, &mut store, 1, now()).map_err(|error| error.to_string())?
        }
    };
    println!("{} keys", store.len());
    let (stack, handles) = Stack::new(
        &mut nic,
        &Cmdline::default(),
        1,
        budget::connections(HEAP_BYTES),
        now(),
    );
    let db = Db::new(store, log, budget::memory(HEAP_BYTES, || HEAP_BYTES), now(), || 7);
    let mut server = Server::new(db, stack, handles, nic, disk);
    loop {
        match server.turn(now()) {
            Next::Again => (),
            Next::Wait(time) => {
                let time = time.map(|time| smoltcp::time::Duration::from_micros(time.as_micros() as u64));
                wait(fd, time)?;
            }
            Next::PowerOff => return Ok(()),
        }
    }
}
