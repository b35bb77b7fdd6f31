//! The server on a wire, with clients on its other end, in a time that the test makes: what clients see when frames are
//! lost, when the guest stands still or moves to another host, and when there are too many of them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use lockstep_guest::cmdline::Cmdline;
use lockstep_guest::db::{Db, Memory};
use lockstep_guest::disk::NoDisk;
use lockstep_guest::log::Log;
use lockstep_guest::server::{Next, Server};
use lockstep_guest::stack::{Nic, Stack};
use lockstep_guest::store::Store;
use lockstep_guest::units::Time;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};

type Queue = Rc<RefCell<VecDeque<Vec<u8>>>>;

/// One end of a wire.
struct End {
    incoming: Queue,
    outgoing: Queue,
    is_cut: Rc<RefCell<bool>>,
}

struct Rx(Vec<u8>);

impl smoltcp::phy::RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, look: F) -> R {
        look(&self.0)
    }
}

struct Tx(Option<Queue>);

impl smoltcp::phy::TxToken for Tx {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = vec![0; len];
        let result = write(&mut frame);
        if let Some(queue) = self.0 {
            queue.borrow_mut().push_back(frame);
        }
        result
    }
}

impl End {
    fn tx(&self) -> Tx {
        Tx((!*self.is_cut.borrow()).then(|| Rc::clone(&self.outgoing)))
    }
}

impl Device for End {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx;

    fn receive(&mut self, _now: Instant) -> Option<(Rx, Tx)> {
        let frame = self.incoming.borrow_mut().pop_front()?;
        Some((Rx(frame), self.tx()))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Tx> {
        Some(self.tx())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

impl Nic for End {
    fn mac(&self) -> [u8; 6] {
        [2, 0, 0, 0, 0, 2]
    }

    fn has_frames(&self) -> bool {
        !self.incoming.borrow().is_empty()
    }

    fn kick(&mut self) {}
}

/// Server, wire and clients.
struct World {
    now: Time,
    server: Server<End, NoDisk>,
    end: End,
    clients: Interface,
    sockets: SocketSet<'static>,
    /// Nothing that the server sends arrives while this is set.
    is_cut: Rc<RefCell<bool>>,
    next_port: u16,
}

impl World {
    fn new(connections: usize) -> Self {
        let (there, back) = (Queue::default(), Queue::default());
        let is_cut = Rc::new(RefCell::new(false));
        let mut end = End {
            incoming: Rc::clone(&back),
            outgoing: Rc::clone(&there),
            is_cut: Rc::default(),
        };
        let mut nic = End {
            incoming: there,
            outgoing: back,
            is_cut: Rc::clone(&is_cut),
        };

        let now = Time::from_nanos(1_000_000_000);
        let (stack, handles) = Stack::new(&mut nic, &Cmdline::default(), 5, connections, now);
        let memory = Memory {
            store_max: 1 << 20,
            buffers_max: 4 << 20,
            free: || usize::MAX,
            reserve: 0,
        };
        let db = Db::new(Store::new(), Log::volatile(), memory, now, || 7);
        let server = Server::new(db, stack, handles, nic, NoDisk);

        let config = Config::new(EthernetAddress([2, 0, 0, 0, 0, 1]).into());
        let mut clients = Interface::new(config, &mut end, Instant::ZERO);
        clients.update_ip_addrs(|addresses| {
            addresses
                .push(IpCidr::new(IpAddress::v4(10, 77, 0, 1), 24))
                .expect("the list is empty");
        });
        World {
            now,
            server,
            end,
            clients,
            sockets: SocketSet::new(Vec::new()),
            is_cut,
            next_port: 50_000,
        }
    }

    fn connect(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 4096]);
        let handle = self.sockets.add(tcp::Socket::new(buffer(), buffer()));
        let server = (IpAddress::v4(10, 77, 0, 2), 6379);
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket
            .connect(self.clients.context(), server, self.next_port)
            .expect("the socket is new");
        self.next_port += 1;
        handle
    }

    fn socket(&mut self, client: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(client)
    }

    fn say(&mut self, client: SocketHandle, text: &str) {
        self.socket(client)
            .send_slice(text.as_bytes())
            .expect("the connection is open");
    }

    fn hear(&mut self, client: SocketHandle) -> String {
        let socket = self.socket(client);
        let mut heard = vec![0; socket.recv_queue()];
        let len = socket.recv_slice(&mut heard).unwrap_or(0);
        String::from_utf8_lossy(&heard[..len]).into_owned()
    }

    /// Lets both sides do what they have to do at this moment.
    fn round(&mut self) {
        let now = Instant::from_micros((self.now.as_nanos() / 1000) as i64);
        self.clients.poll(now, &mut self.end, &mut self.sockets);
        while self.server.turn(self.now) == Next::Again {}
        self.clients.poll(now, &mut self.end, &mut self.sockets);
    }

    fn run_for(&mut self, duration: Duration) {
        let end = self.now.after(duration);
        while self.now < end {
            self.round();
            self.now = self.now.after(Duration::from_millis(1));
        }
    }

    /// Time passes in which nothing happens.
    fn stand_still(&mut self, duration: Duration) {
        self.now = self.now.after(duration);
    }
}

const MOMENT: Duration = Duration::from_millis(30);

#[test]
fn a_reply_lost_in_a_takeover_is_sent_again_at_once() {
    let mut world = World::new(4);
    let client = world.connect();
    world.run_for(MOMENT);
    world.say(client, "set a 1\r\n");
    world.run_for(MOMENT);
    assert_eq!(world.hear(client), "+OK\r\n");

    *world.is_cut.borrow_mut() = true;
    world.say(client, "get a\r\n");
    world.round();
    world.stand_still(Duration::from_millis(150));
    *world.is_cut.borrow_mut() = false;
    world.run_for(Duration::from_millis(2));
    assert_eq!(world.hear(client), "$1\r\n1\r\n");
}

#[test]
fn a_reply_lost_twice_still_comes_within_a_third_of_a_second() {
    let mut world = World::new(4);
    let client = world.connect();
    world.run_for(MOMENT);
    *world.is_cut.borrow_mut() = true;
    world.say(client, "ping\r\n");
    world.run_for(Duration::from_millis(150));
    *world.is_cut.borrow_mut() = false;
    world.run_for(Duration::from_millis(150));
    assert_eq!(world.hear(client), "+PONG\r\n");
}

#[test]
fn connections_outlive_a_guest_that_stands_still_for_an_hour() {
    let mut world = World::new(4);
    let client = world.connect();
    world.run_for(MOMENT);
    world.say(client, "ping\r\n");
    world.run_for(MOMENT);
    world.hear(client);

    world.stand_still(Duration::from_secs(3600));
    world.say(client, "ping\r\n");
    world.run_for(MOMENT);
    assert_eq!(world.hear(client), "+PONG\r\n");
}

#[test]
fn a_client_that_vanished_is_forgotten_and_makes_room() {
    let mut world = World::new(1);
    let client = world.connect();
    world.run_for(MOMENT);
    assert!(world.socket(client).may_send());
    world.sockets.remove(client);

    // The other end now answers keep-alives with a reset, or not at all.
    world.run_for(Duration::from_secs(80));
    let next = world.connect();
    world.run_for(MOMENT);
    world.say(next, "ping\r\n");
    world.run_for(MOMENT);
    assert_eq!(world.hear(next), "+PONG\r\n");
}

#[test]
fn one_client_too_many_is_refused_and_the_others_go_on() {
    let mut world = World::new(2);
    let clients = [world.connect(), world.connect()];
    world.run_for(MOMENT);
    let refused = world.connect();
    world.run_for(MOMENT);
    assert_eq!(world.socket(refused).state(), tcp::State::Closed);
    world.say(clients[1], "ping\r\n");
    world.run_for(MOMENT);
    assert_eq!(world.hear(clients[1]), "+PONG\r\n");

    world.say(clients[0], "quit\r\n");
    world.run_for(MOMENT);
    assert_eq!(world.hear(clients[0]), "+OK\r\n");
    world.socket(clients[0]).close();
    world.run_for(Duration::from_secs(2));
    let next = world.connect();
    world.run_for(MOMENT);
    assert!(world.socket(next).may_send());
}

#[test]
fn a_client_that_never_completes_its_connection_makes_room() {
    let mut world = World::new(1);
    *world.is_cut.borrow_mut() = true;
    let silent = world.connect();
    world.run_for(MOMENT);
    world.sockets.remove(silent);
    // Resets of the vanished client must not help: it says nothing at all.
    world.run_for(Duration::from_secs(5));
    *world.is_cut.borrow_mut() = false;

    let next = world.connect();
    world.run_for(MOMENT);
    assert!(world.socket(next).may_send());
}

#[test]
fn bad_bytes_are_answered_and_end_the_connection() {
    let mut world = World::new(1);
    let client = world.connect();
    world.run_for(MOMENT);
    world.say(client, "*1\r\n:12\r\n");
    world.run_for(MOMENT);
    assert_eq!(
        world.hear(client),
        "-ERR Protocol error: expected '$', got ':'\r\n"
    );
    assert!(!world.socket(client).may_recv());
}

#[test]
fn a_client_that_has_said_everything_still_hears_the_rest() {
    let mut world = World::new(1);
    let client = world.connect();
    world.run_for(MOMENT);
    world.say(client, "ping\r\nping\r\n");
    world.socket(client).close();
    world.run_for(MOMENT);
    assert_eq!(world.hear(client), "+PONG\r\n+PONG\r\n");
}

#[test]
fn shutdown_ends_the_loop() {
    let mut world = World::new(1);
    let client = world.connect();
    world.run_for(MOMENT);
    world.say(client, "shutdown\r\n");
    world.clients.poll(
        Instant::from_micros((world.now.as_nanos() / 1000) as i64),
        &mut world.end,
        &mut world.sockets,
    );
    assert_eq!(world.server.turn(world.now), Next::PowerOff);
}
