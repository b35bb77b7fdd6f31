//! The wire between the two hosts when it must be possible to cut it: a UDP relay on its own thread. Each host is looked
//! for at a front address; what arrives there goes on to the host's own address, and answers find their way back. Cut,
//! it drops everything, both ways, silently, as a broken cable does.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

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

/// The relay; it stops when dropped.
pub(crate) struct Relay {
    cut: Arc<AtomicBool>,
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
        let cut = Arc::new(AtomicBool::new(false));
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        let seen = Arc::clone(&cut);
        let thread = thread::Builder::new().name("relay".into()).spawn(move || {
            runtime.block_on(async move {
                for (socket, route) in fronts {
                    if let Ok(socket) = UdpSocket::from_std(socket) {
                        tokio::spawn(forward(Arc::new(socket), route.back, Arc::clone(&seen)));
                    }
                }
                // Either word or silence: the owner is gone.
                let _ = stopped.await;
            });
        })?;
        Ok(Self {
            cut,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// From now on nothing passes.
    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
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
async fn forward(front: Arc<UdpSocket>, back: SocketAddr, cut: Arc<AtomicBool>) {
    let mut senders: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut packet = vec![0; PACKET_MAX];
    loop {
        // An error here is the answer to an earlier packet (a host that is not up yet); the next one may pass.
        let Ok((size, sender)) = front.recv_from(&mut packet).await else {
            continue;
        };
        if cut.load(Ordering::SeqCst) {
            continue;
        }
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
                Arc::clone(&cut),
            ));
            senders.insert(sender, socket);
        }
        let _ = senders[&sender].send(&packet[..size]).await;
    }
}

/// Moves answers back to the one sender.
async fn answer(front: Arc<UdpSocket>, socket: Arc<UdpSocket>, sender: SocketAddr, cut: Arc<AtomicBool>) {
    let mut packet = vec![0; PACKET_MAX];
    loop {
        let Ok(size) = socket.recv(&mut packet).await else {
            continue;
        };
        if !cut.load(Ordering::SeqCst) {
            let _ = front.send_to(&packet[..size], sender).await;
        }
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
