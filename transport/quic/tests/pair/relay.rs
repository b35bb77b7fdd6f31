//! A wire that can be cut: forwards datagrams between the primary and the backup, or eats them.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    cut: Arc<AtomicBool>,
}

impl Relay {
    /// A wire to the backup at `to`. Its threads end with the test's process.
    pub(crate) fn new(to: SocketAddr) -> Self {
        let near = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let far = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        far.connect(to).unwrap();
        let address = near.local_addr().unwrap();
        let cut = Arc::new(AtomicBool::new(false));
        let (near_in, far_out, cut_there) = (near.clone(), far.clone(), cut.clone());
        let (first_sender, primary) = std::sync::mpsc::sync_channel(1);
        thread::spawn(move || {
            let mut packet = [0; 65_536];
            while let Ok((size, from)) = near_in.recv_from(&mut packet) {
                let _ = first_sender.try_send(from);
                if !cut_there.load(Ordering::Relaxed) {
                    let _ = far_out.send(&packet[..size]);
                }
            }
        });
        let cut_back = cut.clone();
        thread::spawn(move || {
            let primary = primary.recv().unwrap();
            let mut packet = [0; 65_536];
            while let Ok(size) = far.recv(&mut packet) {
                if !cut_back.load(Ordering::Relaxed) {
                    let _ = near.send_to(&packet[..size], primary);
                }
            }
        });
        Self { address, cut }
    }

    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }
}
