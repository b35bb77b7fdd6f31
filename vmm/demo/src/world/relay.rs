//! The wire between the two hosts when it must be possible to cut it: a UDP relay on its own thread. Each host is looked
//! for at a front address; what arrives there goes on to the host's own address, and answers find their way back. Cut,
//! it drops everything, one way or both, silently, as a broken cable does; it can be slow and lossy as well.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::oneshot;

/// One direction of lookup.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    /// Where others send to.
    pub(crate) front: SocketAddr,
    /// Where it goes on to.
    pub(crate) back: SocketAddr,
}

/// What the wire does to packets.
#[derive(Debug, Default)]
struct Weather {
    /// Nothing passes to the host of the first route, or from it.
    cut_to_first: AtomicBool,
    cut_from_first: AtomicBool,
    delay_us: AtomicU64,
    loss_per_mille: AtomicU32,
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    ToFirst,
    FromFirst,
}

/// The relay; it stops when dropped.
pub(crate) struct Relay {
    weather: Arc<Weather>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Binds all fronts and starts to relay.
    pub(crate) fn start(routes: &[Route]) -> io::Result<Self> {
        let fronts = routes
            .iter()
            .map(|route| {
                let socket = std::net::UdpSocket::bind(route.front)?;
                socket.set_nonblocking(true)?;
                Ok((socket, *route))
            })
            .collect::<io::Result<Vec<_>>>()?;
        let weather = Arc::new(Weather::default());
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let seen = Arc::clone(&weather);
        let thread = thread::Builder::new().name("relay".into()).spawn(move || {
            runtime.block_on(async move {
                let ways = [Way::ToFirst, Way::FromFirst];
                for ((socket, route), way) in fronts.into_iter().zip(ways) {
                    if let Ok(socket) = UdpSocket::from_std(socket) {
                        tokio::spawn(forward(Arc::new(socket), route.back, way, Arc::clone(&seen)));
                    }
                }
                // Either word or silence: the owner is gone.
                let _ = stopped.await;
            });
        })?;
        Ok(Self {
            weather,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// From now on nothing passes.
    pub(crate) fn cut(&self) {
        self.cut_ways(true, true);
    }

    /// From now on nothing passes to the host of the first route, nothing comes from it, or both.
    pub(crate) fn cut_ways(&self, to_first: bool, from_first: bool) {
        self.weather.cut_to_first.store(to_first, Ordering::SeqCst);
        self.weather.cut_from_first.store(from_first, Ordering::SeqCst);
    }

    /// From now on every packet takes `delay` and every thousandth is lost `loss_per_mille` times. Overtaking is
    /// possible, as on a wide network.
    pub(crate) fn worsen(&self, delay: Duration, loss_per_mille: u32) {
        let delay = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.weather.delay_us.store(delay, Ordering::SeqCst);
        self.weather
            .loss_per_mille
            .store(loss_per_mille, Ordering::SeqCst);
    }

    /// The wire is as good as new.
    pub(crate) fn mend(&self) {
        self.cut_ways(false, false);
        self.worsen(Duration::ZERO, 0);
    }
}

impl Way {
    fn back(self) -> Self {
        match self {
            Self::ToFirst => Self::FromFirst,
            Self::FromFirst => Self::ToFirst,
        }
    }
}

impl Weather {
    /// Lets a packet that goes `way` reach `send`, late or never.
    async fn carry<F>(&self, way: Way, send: impl FnOnce() -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let cut = match way {
            Way::ToFirst => &self.cut_to_first,
            Way::FromFirst => &self.cut_from_first,
        };
        let loss = self.loss_per_mille.load(Ordering::SeqCst);
        if cut.load(Ordering::SeqCst) || (loss > 0 && rand::random_range(0..1000) < loss) {
            return;
        }
        match self.delay_us.load(Ordering::SeqCst) {
            0 => send().await,
            delay => {
                let late = send();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_micros(delay)).await;
                    late.await;
                });
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Moves what arrives at `front` on to `back`, from one socket for each sender so that answers can be told apart.
async fn forward(front: Arc<UdpSocket>, back: SocketAddr, way: Way, weather: Arc<Weather>) {
    let mut senders: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut packet = vec![0; PACKET_MAX];
    loop {
        // An error here is the answer to an earlier packet (a host that is not up yet); the next one may pass.
        let Ok((size, sender)) = front.recv_from(&mut packet).await else {
            continue;
        };
        if !senders.contains_key(&sender) {
            if senders.len() == SENDERS_MAX {
                senders.clear();
            }
            let Ok(socket) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.map(Arc::new) else {
                continue;
            };
            if socket.connect(back).await.is_err() {
                continue;
            }
            tokio::spawn(answer(
                Arc::clone(&front),
                Arc::clone(&socket),
                sender,
                way.back(),
                Arc::clone(&weather),
            ));
            senders.insert(sender, socket);
        }
        let (socket, packet) = (Arc::clone(&senders[&sender]), packet[..size].to_vec());
        let send = || async move {
            // An error here is the answer to an earlier packet, too.
            let _ = socket.send(&packet).await;
        };
        weather.carry(way, send).await;
    }
}

/// Moves answers back to the one sender.
async fn answer(
    front: Arc<UdpSocket>,
    socket: Arc<UdpSocket>,
    sender: SocketAddr,
    way: Way,
    weather: Arc<Weather>,
) {
    let mut packet = vec![0; PACKET_MAX];
    loop {
        let Ok(size) = socket.recv(&mut packet).await else {
            continue;
        };
        let (front, packet) = (Arc::clone(&front), packet[..size].to_vec());
        let send = || async move {
            let _ = front.send_to(&packet, sender).await;
        };
        weather.carry(way, send).await;
    }
}

const PACKET_MAX: usize = 65_535;
/// A pair makes a handful of sockets; more means strangers, and the oldest state may go.
const SENDERS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn socket() -> std::net::UdpSocket {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket
    }

    #[test]
    fn packets_pass_both_ways_until_the_wire_is_cut() {
        let (host, client, free) = (socket(), socket(), socket());
        let front = free.local_addr().unwrap();
        drop(free);
        let relay = Relay::start(&[Route {
            front,
            back: host.local_addr().unwrap(),
        }])
        .unwrap();
        let mut packet = [0; 16];

        client.send_to(b"ping", front).unwrap();
        let (size, from) = host.recv_from(&mut packet).unwrap();
        assert_eq!(&packet[..size], b"ping");
        host.send_to(b"pong", from).unwrap();
        assert_eq!(client.recv_from(&mut packet).unwrap(), (4, front));

        relay.cut();
        client.send_to(b"lost", front).unwrap();
        host.send_to(b"lost", from).unwrap();
        assert!(host.recv_from(&mut packet).is_err());
        assert!(client.recv_from(&mut packet).is_err());
    }
}
