//! TCP: smoltcp, set up for this guest, and the way its time is told. The server polls it; it never waits.

use alloc::vec::Vec;
use core::time::Duration;

use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::Device;
use smoltcp::socket::tcp;
use smoltcp::time as net;
use smoltcp::wire::{EthernetAddress, IpCidr};

use crate::cmdline::Cmdline;
use crate::limits::SOCKET_BUFFER;
use crate::units::Time;

/// A network card.
pub trait Nic: Device {
    /// The card's address.
    fn mac(&self) -> [u8; 6];
    /// Whether frames wait to be received.
    fn has_frames(&self) -> bool;
    /// Sends what was queued.
    fn kick(&mut self);
}

/// smoltcp lives this many times faster than the guest. Its shortest retransmission time-out is a fixed second, made
/// for the Internet; a client of a pair that has just failed over must not wait that long, so the second is shortened
/// to a sixteenth. All other times that are given to it are stretched by the same factor.
const HASTE: u32 = 16;
/// Acks wait this long for a reply to travel with.
const ACK_DELAY: Duration = Duration::from_millis(10);
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A client that was not heard of for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How much later than asked a round may come before the rest counts as time that did not pass for the connections.
const JUMP_MAX: Duration = Duration::from_secs(1);
/// When smoltcp has something to send but the card is full: the card's own news comes sooner.
const FULL_WAIT: Duration = Duration::from_millis(1);

/// The stack.
pub struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    port: u16,
    /// The time of the last round, and how long the next was allowed to take.
    last: Time,
    patience: Option<Duration>,
    /// Time that passed for the guest but not for its connections.
    skipped: Duration,
}

impl Stack {
    /// A stack with so many sockets, all listening.
    pub fn new(
        nic: &mut impl Nic,
        line: &Cmdline,
        seed: u64,
        sockets: usize,
        now: Time,
    ) -> (Self, Vec<SocketHandle>) {
        let mut config = Config::new(EthernetAddress(nic.mac()).into());
        config.random_seed = seed;
        let mut interface = Interface::new(config, nic, instant(now, Duration::ZERO));
        interface.update_ip_addrs(|addresses| {
            // The list has room for the one address that it ever gets.
            let _ = addresses.push(IpCidr::new(line.address.into(), line.prefix));
        });
        if let Some(gateway) = line.gateway {
            // As for the address.
            let _ = interface.routes_mut().add_default_ipv4_route(gateway);
        }
        let mut set = SocketSet::new(Vec::with_capacity(sockets));
        let handles = (0..sockets).map(|_| set.add(socket(line.port))).collect();
        let stack = Stack {
            interface,
            sockets: set,
            port: line.port,
            last: now,
            patience: None,
            skipped: Duration::ZERO,
        };
        (stack, handles)
    }

    /// A socket.
    pub fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Makes a socket that is closed listen again.
    pub fn listen(&mut self, handle: SocketHandle) {
        let port = self.port;
        let socket = self.socket(handle);
        if socket.state() == tcp::State::Closed && socket.remote_endpoint().is_none() {
            // The socket is closed and the port is not zero: nothing else is refused.
            let _ = socket.listen(port);
        }
    }

    /// Takes the time of a new round. A guest that stood still, or that was moved to another host, must not find all its
    /// connections timed out, so what exceeds the wait that was asked for is skipped.
    pub fn tell_time(&mut self, now: Time) {
        let passed = now.since(self.last);
        if let Some(patience) = self.patience {
            self.skipped += passed.saturating_sub(patience + JUMP_MAX);
        }
        self.last = now;
        self.patience = Some(Duration::ZERO);
    }

    /// Receives every frame that has arrived.
    pub fn receive(&mut self, nic: &mut impl Nic) {
        let now = self.instant();
        while self.interface.poll_ingress_single(now, nic, &mut self.sockets) != PollIngressSingleResult::None
        {
        }
    }

    /// Hands every frame that can be sent to the card.
    pub fn transmit(&mut self, nic: &mut impl Nic) {
        let now = self.instant();
        self.interface.poll_maintenance(now);
        while self.interface.poll_egress(now, nic, &mut self.sockets) != PollResult::None {}
    }

    /// How long nothing needs to be done unless something arrives. Asked once, at the end of a round.
    pub fn wait(&mut self) -> Option<Duration> {
        let now = self.instant();
        let delay = self.interface.poll_delay(now, &self.sockets)?;
        let wait = Duration::from_micros(delay.total_micros().div_ceil(u64::from(HASTE)));
        let wait = if wait.is_zero() { FULL_WAIT } else { wait };
        self.patience = Some(wait);
        Some(wait)
    }

    fn instant(&self) -> net::Instant {
        instant(self.last, self.skipped)
    }
}

fn instant(now: Time, skipped: Duration) -> net::Instant {
    let nanos = now.as_nanos().saturating_sub(skipped.as_nanos() as u64);
    net::Instant::from_micros((nanos / 1000 * u64::from(HASTE)) as i64)
}

fn stretched(duration: Duration) -> net::Duration {
    net::Duration::from_micros(duration.as_micros() as u64 * u64::from(HASTE))
}

fn socket(port: u16) -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(alloc::vec![0; SOCKET_BUFFER]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(Some(stretched(ACK_DELAY)));
    socket.set_keep_alive(Some(stretched(KEEP_ALIVE)));
    socket.set_timeout(Some(stretched(SILENCE_MAX)));
    // A new socket is closed and the port is not zero: nothing else is refused.
    let _ = socket.listen(port);
    socket
}
