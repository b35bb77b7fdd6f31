//! The server in the smallest VM that is allowed: whatever its clients say, and however slow its disk is, it never takes
//! more memory than there is. An allocator that must move what grows, and so has it twice meanwhile, is the worst there is.

mod world;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_guest::budget;
use lockstep_guest::db::Db;
use lockstep_guest::disk::{Disk, Done, Request, SECTOR_BYTES, Tag};
use lockstep_guest::limits::{ARGUMENTS_MAX, VALUE_MAX};
use lockstep_guest::log;
use lockstep_guest::server::{Next, Server};
use lockstep_guest::store::Store;
use lockstep_guest::store::op::Op;
use lockstep_guest::units::Time;
use lockstep_guest::virtio::net::{OPEN_BYTES, SEND_BYTES};
use peak_alloc::PeakAlloc;
use smoltcp::iface::SocketHandle;
use world::World;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// What the image leaves of 16 MiB, and a little less.
const HEAP: usize = 11 << 20;
/// What the guest holds, as of when it last ran.
static GUEST: AtomicUsize = AtomicUsize::new(0);
/// What everything else holds: the clients, the wire, the disk, the test.
static OTHERS: AtomicUsize = AtomicUsize::new(0);
/// Memory is counted for the whole process.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    GUEST.store(0, Ordering::Relaxed);
    alone
}

/// What the guest's allocator would say. The card is not here, but has what it takes when it is opened.
fn free() -> usize {
    let used = ALLOCATOR
        .current_usage()
        .saturating_sub(OTHERS.load(Ordering::Relaxed));
    (HEAP - OPEN_BYTES).saturating_sub(used)
}

/// Does what the guest does, and looks that it leaves the card what that may take.
fn as_guest<R>(work: impl FnOnce() -> R) -> R {
    let (result, peak) = measured(work);
    let most = HEAP - OPEN_BYTES - SEND_BYTES;
    assert!(peak <= most, "the heap is exhausted: {peak} of {most}");
    result
}

/// Does what the guest does; answers the most memory that it had meanwhile.
fn measured<R>(work: impl FnOnce() -> R) -> (R, usize) {
    let others = ALLOCATOR.current_usage() - GUEST.load(Ordering::Relaxed);
    OTHERS.store(others, Ordering::Relaxed);
    ALLOCATOR.reset_peak_usage();
    let result = work();
    let peak = ALLOCATOR.peak_usage() - others;
    GUEST.store(ALLOCATOR.current_usage() - others, Ordering::Relaxed);
    (result, peak)
}

/// A disk that is done with a request only when it was asked often enough.
struct SlowDisk {
    medium: Vec<u8>,
    waiting: VecDeque<(usize, Done)>,
    asked: usize,
    patience: usize,
}

impl SlowDisk {
    fn blank() -> Self {
        SlowDisk {
            medium: vec![0; 64 << 20],
            waiting: VecDeque::with_capacity(64),
            asked: 0,
            patience: 0,
        }
    }
}

impl Disk for SlowDisk {
    fn sectors(&self) -> u64 {
        (self.medium.len() / SECTOR_BYTES) as u64
    }

    fn needs_flush(&self) -> bool {
        true
    }

    fn flushes_in_order(&self) -> bool {
        true
    }

    fn submit(&mut self, tag: Tag, request: Request) -> Result<(), Request> {
        let place = |sector: u64, len: usize| {
            let start = sector as usize * SECTOR_BYTES;
            start..start + len
        };
        let bytes = match request {
            Request::Read { sector, mut bytes } => {
                let place = place(sector, bytes.len());
                bytes.copy_from_slice(&self.medium[place]);
                bytes
            }
            Request::Write { sector, bytes } => {
                self.medium[place(sector, bytes.len())].copy_from_slice(&bytes);
                bytes
            }
            Request::Flush => Vec::new(),
        };
        let result = Ok(());
        self.waiting
            .push_back((self.asked + self.patience, Done { tag, result, bytes }));
        Ok(())
    }

    fn kick(&mut self) {}

    fn has_done(&self) -> bool {
        self.waiting.front().is_some_and(|(due, _)| *due <= self.asked)
    }

    fn poll(&mut self) -> Option<Done> {
        self.asked += 1;
        if self.has_done() {
            self.waiting.pop_front().map(|(_, done)| done)
        } else {
            None
        }
    }

    fn wait(&mut self) {}
}

/// A client with something to say.
struct Client {
    socket: SocketHandle,
    words: Vec<u8>,
    said: usize,
    heard: Vec<u8>,
}

/// A VM and its clients.
struct Vm {
    world: World<SlowDisk>,
    clients: Vec<Client>,
    _alone: MutexGuard<'static, ()>,
}

impl Vm {
    /// The smallest VM, with as many clients as it takes.
    fn smallest() -> Self {
        let alone = alone();
        let mut disk = SlowDisk::blank();
        let connections = budget::connections(HEAP);
        let mut world = World::with(connections, |mut nic, now, stack| {
            as_guest(|| {
                let mut store = Store::new();
                let log = log::open(&mut disk, &mut store, 1, now).expect("the disk is blank");
                disk.patience = 20;
                let (stack, handles) = stack(&mut nic);
                let db = Db::new(store, log, budget::memory(HEAP, free), now, || 7);
                Server::new(db, stack, handles, nic, disk)
            })
        });
        let connect = |_| Client {
            socket: world.connect_with(64 << 10),
            words: Vec::new(),
            said: 0,
            heard: Vec::new(),
        };
        let clients = (0..connections).map(connect).collect();
        Vm {
            world,
            clients,
            _alone: alone,
        }
    }

    /// Every client says something, all at once, until each has heard the end of its replies; answers what they heard.
    fn converse(&mut self, words: impl Fn(usize) -> Vec<u8>) -> Vec<String> {
        for (at, client) in self.clients.iter_mut().enumerate() {
            client.words = words(at);
            client.words.extend(request(&[b"echo", b"that is all"]));
            client.said = 0;
            client.heard.clear();
        }
        let has_heard_all = |client: &Client| client.heard.ends_with(b"$11\r\nthat is all\r\n");
        for _ in 0..20_000 {
            self.round();
            if self.clients.iter().all(has_heard_all) {
                let text = |client: &Client| String::from_utf8_lossy(&client.heard).into_owned();
                return self.clients.iter().map(text).collect();
            }
        }
        panic!("somebody waits for ever")
    }

    fn round(&mut self) {
        let Vm { world, clients, .. } = self;
        for client in clients {
            let socket = world.socket(client.socket);
            if socket.can_send() {
                let more = &client.words[client.said..];
                client.said += socket.send_slice(more).expect("the connection is open");
            }
            let _ = socket.recv(|bytes| {
                client.heard.extend_from_slice(bytes);
                (bytes.len(), ())
            });
        }
        world.poll_clients();
        let now = world.now;
        as_guest(|| while world.server.turn(now) == Next::Again {});
        world.now = now.after(Duration::from_millis(5));
    }
}

fn request(arguments: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        bytes.extend_from_slice(argument);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

fn count(heard: &[String], what: &str) -> usize {
    heard.iter().map(|text| text.matches(what).count()).sum()
}

#[test]
fn values_of_the_largest_kind_are_stored_or_refused_while_batches_are_on_their_way() {
    let mut vm = Vm::smallest();
    let value = vec![b'x'; VALUE_MAX];
    let heard = vm.converse(|client| {
        let key = [b'a' + client as u8];
        [request(&[b"set", &key, &value]), request(&[b"del", &key])]
            .concat()
            .repeat(4)
    });
    let (stored, refused) = (count(&heard, "+OK\r\n"), count(&heard, "-OOM"));
    assert_eq!(stored + refused, 4 * heard.len());
    assert!(stored > heard.len(), "{stored}");
}

#[test]
fn a_value_of_the_largest_kind_is_appended_to_byte_by_byte() {
    let mut vm = Vm::smallest();
    let value = vec![b'x'; VALUE_MAX - 100];
    let heard = vm.converse(|client| match client {
        0 => request(&[b"set", b"a", &value]),
        _ => Vec::new(),
    });
    assert_eq!(count(&heard, "+OK\r\n"), 1);
    let heard = vm.converse(|_| request(&[b"append", b"a", b"y"]).repeat(5));
    let (done, refused) = (count(&heard, ":1048"), count(&heard, "-OOM"));
    assert_eq!(done + refused, 5 * heard.len());
}

#[test]
fn a_full_store_is_listed_read_and_deleted_while_others_go_on_writing() {
    let mut vm = Vm::smallest();
    let names: Vec<Vec<u8>> = (0..ARGUMENTS_MAX)
        .map(|at| format!("{at:05}").into_bytes())
        .collect();
    let of = |name: &'static [u8], count: usize| {
        let names = names[..count].iter().map(|name| &**name);
        request(&[name].into_iter().chain(names).collect::<Vec<_>>())
    };
    let fill = |client: usize| {
        let set = |name: &Vec<u8>| request(&[b"set", name, &[b'x'; 400]]);
        match client {
            0 => names[..10_000].iter().flat_map(set).collect(),
            _ => Vec::new(),
        }
    };
    let value = vec![b'x'; VALUE_MAX];
    let heard = vm.converse(fill);
    assert!(count(&heard, "-OOM") > 0 && count(&heard, "+OK") > 1000);
    let heard = vm.converse(|client| match client {
        0 => of(b"mget", 2000),
        1 => request(&[b"keys", b"*"]).repeat(3),
        2 => [of(b"mset", 20_000), of(b"del", ARGUMENTS_MAX - 1)].concat(),
        3 => request(&[b"set", b"00000", &value]).repeat(3),
        _ => names[..3000]
            .iter()
            .flat_map(|name| request(&[b"append", name, &[b'y'; 40]]))
            .collect(),
    });
    assert!(heard[1].starts_with("*3"), "the keys that there are");
    assert!(
        heard[2].contains("\r\n:3"),
        "to delete them takes no memory of the store's"
    );

    let words = [request(&[b"flushall"]), request(&[b"set", b"a", &value])].concat();
    let heard = vm.converse(|client| if client == 0 { words.clone() } else { Vec::new() });
    assert_eq!(count(&heard, "+OK\r\n"), 2);
}

#[test]
fn long_names_are_refused_and_cost_nothing() {
    let mut vm = Vm::smallest();
    let name = vec![b'n'; VALUE_MAX];
    let heard = vm.converse(|_| request(&[b"hello", b"2", b"setname", &name]));
    assert_eq!(
        count(&heard, "-ERR Client names") + count(&heard, "-OOM"),
        heard.len()
    );
}

#[test]
fn a_large_batch_is_read_back_with_room_for_itself_and_not_for_two() {
    let _alone = alone();
    let mut disk = SlowDisk::blank();
    let mut log = log::open(&mut disk, &mut Store::new(), 1, Time::ZERO).expect("the disk is blank");
    let value = vec![b'x'; VALUE_MAX];
    for (key, len) in [(b"a", VALUE_MAX), (b"b", VALUE_MAX), (b"c", VALUE_MAX / 4)] {
        log.append(&Op::Put {
            key,
            value: &value[..len],
            expires: Time::ZERO,
        });
    }
    (0..10).for_each(|_| log.drive(&mut disk, &Store::new(), Time::ZERO));
    assert!(log.is_settled());

    let (store, peak) = measured(|| {
        let mut store = Store::new();
        log::open(&mut disk, &mut store, 1, Time::ZERO).expect("it was just written");
        store
    });
    assert_eq!(store.len(), 3);
    let (values, slack) = (9 * VALUE_MAX / 4, 3 * VALUE_MAX / 4);
    assert!(peak <= 2 * values + slack, "{peak}");
}

#[test]
fn room_that_was_made_in_vain_goes_before_more_is_made() {
    let _alone = alone();
    let mut disk = SlowDisk::blank();
    let (mut log, _) = measured(|| {
        let mut log = log::open(&mut disk, &mut Store::new(), 1, Time::ZERO).expect("the disk is blank");
        assert!(log.reserve(VALUE_MAX, || usize::MAX));
        log
    });
    let (made, peak) = measured(|| log.reserve(2 * VALUE_MAX, || usize::MAX));
    assert!(made && peak < 5 * VALUE_MAX / 2, "{peak}");
}
