//! The server on a wire, clients on its other end, and a time that the test makes. The stories of `wire.rs` and `heap.rs`
//! live in it.
#![allow(dead_code, reason = "each story file uses another part of it")]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use lockstep_guest::cmdline::Cmdline;
use lockstep_guest::disk::Disk;
use lockstep_guest::server::{Next, Server};
use lockstep_guest::stack::{Nic, Stack};
use lockstep_guest::units::Time;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};

const FRAME_MAX: usize = 1514;
/// More than are ever on their way, so that neither end has to make one and the guest's memory can be measured.
const FRAMES: usize = 4096;

type Queue = Rc<RefCell<VecDeque<Vec<u8>>>>;

/// One end of a wire.
pub(crate) struct End {
    incoming: Queue,
    outgoing: Queue,
    /// Frames to be written to.
    blank: Queue,
    is_cut: Rc<RefCell<bool>>,
}

pub(crate) struct Rx {
    frame: Vec<u8>,
    blank: Queue,
}

impl smoltcp::phy::RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, look: F) -> R {
        let result = look(&self.frame);
        self.blank.borrow_mut().push_back(self.frame);
        result
    }
}

pub(crate) struct Tx {
    blank: Queue,
    to: Queue,
}

impl smoltcp::phy::TxToken for Tx {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = self
            .blank
            .borrow_mut()
            .pop_front()
            .expect("there are enough frames");
        frame.clear();
        frame.resize(len, 0);
        let result = write(&mut frame);
        self.to.borrow_mut().push_back(frame);
        result
    }
}

impl End {
    fn tx(&self) -> Tx {
        let to = match *self.is_cut.borrow() {
            true => &self.blank,
            false => &self.outgoing,
        };
        Tx {
            blank: Rc::clone(&self.blank),
            to: Rc::clone(to),
        }
    }
}

impl Device for End {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx;

    fn receive(&mut self, _now: Instant) -> Option<(Rx, Tx)> {
        let frame = self.incoming.borrow_mut().pop_front()?;
        let blank = Rc::clone(&self.blank);
        Some((Rx { frame, blank }, self.tx()))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Tx> {
        Some(self.tx())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_MAX;
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
pub(crate) struct World<D> {
    pub(crate) now: Time,
    pub(crate) server: Server<End, D>,
    pub(crate) end: End,
    pub(crate) clients: Interface,
    pub(crate) sockets: SocketSet<'static>,
    /// Nothing that the server sends arrives while this is set.
    pub(crate) is_cut: Rc<RefCell<bool>>,
    next_port: u16,
}

impl<D: Disk> World<D> {
    /// A world around the server that is built on one end of the wire, with so many sockets.
    pub(crate) fn with(
        connections: usize,
        build: impl FnOnce(End, Time, &dyn Fn(&mut End) -> (Stack, Vec<SocketHandle>)) -> Server<End, D>,
    ) -> Self {
        let queue = || Rc::new(RefCell::new(VecDeque::with_capacity(FRAMES)));
        let (there, back, blank): (Queue, Queue, Queue) = (queue(), queue(), queue());
        blank
            .borrow_mut()
            .extend((0..FRAMES).map(|_| Vec::with_capacity(FRAME_MAX)));
        let is_cut = Rc::new(RefCell::new(false));
        let mut end = End {
            incoming: Rc::clone(&back),
            outgoing: Rc::clone(&there),
            blank: Rc::clone(&blank),
            is_cut: Rc::default(),
        };
        let nic = End {
            incoming: there,
            outgoing: back,
            blank,
            is_cut: Rc::clone(&is_cut),
        };
        let now = Time::from_nanos(1_000_000_000);
        let server = build(nic, now, &|nic| {
            Stack::new(nic, &Cmdline::default(), 5, connections, now)
        });

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

    pub(crate) fn connect(&mut self) -> SocketHandle {
        self.connect_with(4096)
    }

    /// A client with buffers of so many bytes each way.
    pub(crate) fn connect_with(&mut self, bytes: usize) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; bytes]);
        let handle = self.sockets.add(tcp::Socket::new(buffer(), buffer()));
        let server = (IpAddress::v4(10, 77, 0, 2), 6379);
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket
            .connect(self.clients.context(), server, self.next_port)
            .expect("the socket is new");
        self.next_port += 1;
        handle
    }

    pub(crate) fn socket(&mut self, client: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(client)
    }

    pub(crate) fn say(&mut self, client: SocketHandle, text: &str) {
        self.socket(client)
            .send_slice(text.as_bytes())
            .expect("the connection is open");
    }

    pub(crate) fn hear(&mut self, client: SocketHandle) -> String {
        let socket = self.socket(client);
        let mut heard = vec![0; socket.recv_queue()];
        let len = socket.recv_slice(&mut heard).unwrap_or(0);
        String::from_utf8_lossy(&heard[..len]).into_owned()
    }

    /// Lets the clients do what they have to do at this moment.
    pub(crate) fn poll_clients(&mut self) {
        let now = Instant::from_micros((self.now.as_nanos() / 1000) as i64);
        self.clients.poll(now, &mut self.end, &mut self.sockets);
    }

    /// Lets both sides do what they have to do at this moment.
    pub(crate) fn round(&mut self) {
        self.poll_clients();
        while self.server.turn(self.now) == Next::Again {}
        self.poll_clients();
    }

    pub(crate) fn run_for(&mut self, duration: Duration) {
        let end = self.now.after(duration);
        while self.now < end {
            self.round();
            self.now = self.now.after(Duration::from_millis(1));
        }
    }

    /// Time passes in which nothing happens.
    pub(crate) fn stand_still(&mut self, duration: Duration) {
        self.now = self.now.after(duration);
    }
}
