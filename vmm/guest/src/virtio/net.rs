//! The network card: smoltcp's view of the receive and the transmit queue. The main loop polls smoltcp with it and kicks
//! once per round; nothing here waits.

use alloc::vec::Vec;
use core::num::{NonZeroU16, NonZeroUsize};

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::time::Instant;

use super::mmio::{Kind, OpenError, Registers, Transport};
use super::offload::{self, HEADER_BYTES};
use super::queue::{Finished, Piece, Queue};
use crate::stack::Nic;

const FEATURE_CSUM: u64 = 1 << 0;
const FEATURE_GUEST_CSUM: u64 = 1 << 1;
const FEATURE_MAC: u64 = 1 << 5;
const FEATURE_GUEST_TSO4: u64 = 1 << 7;
const FEATURE_HOST_TSO4: u64 = 1 << 11;
const FEATURE_MRG_RXBUF: u64 = 1 << 15;

const RX_QUEUE: u16 = 0;
const TX_QUEUE: u16 = 1;
/// Frames that may wait in either direction.
const QUEUE_SIZE: u16 = 256;
/// One receive buffer: a plain frame fits into one, a merged one takes several.
const RX_BUFFER_BYTES: usize = 4096;
/// Largest Ethernet frame of a plain MTU.
const FRAME_MAX: usize = 1514;
/// Largest frame that the device is asked to cut into segments, or may have merged.
const LARGE_FRAME_MAX: usize = 60 << 10;
const MERGED_FRAME_MAX: usize = 65550;
/// How many large frames may be on their way out at once: bounds their memory.
const LARGE_IN_FLIGHT: usize = 24;
/// Memory of both rings and of what is known about the chains in them, generously.
const RINGS_BYTES: usize = 128 << 10;
/// What the card takes when it is opened.
pub const OPEN_BYTES: usize = RINGS_BYTES + QUEUE_SIZE as usize * RX_BUFFER_BYTES + MERGED_FRAME_MAX;
/// What it may take later, for frames on their way out.
pub const SEND_BYTES: usize =
    QUEUE_SIZE as usize * (HEADER_BYTES + FRAME_MAX) + LARGE_IN_FLIGHT * (HEADER_BYTES + LARGE_FRAME_MAX);

/// The receive half.
#[derive(Debug)]
struct Rx {
    queue: Queue,
    /// A frame that lay in several buffers, put together.
    merged: Vec<u8>,
}

/// The transmit half.
#[derive(Debug)]
struct Tx {
    queue: Queue,
    /// Buffers for plain frames, kept for the next one.
    spare: Vec<Vec<u8>>,
    large: usize,
    checksums: bool,
    segmentation: bool,
}

/// The network card.
#[derive(Debug)]
pub struct Net {
    transport: Transport,
    rx: Rx,
    tx: Tx,
    mac: [u8; 6],
}

impl Net {
    /// Starts the card behind the registers. `mac` is used when the device names none.
    pub fn open(registers: Registers, mac: [u8; 6]) -> Result<Self, OpenError> {
        let mut transport = Transport::open(registers, Kind::Net, choose)?;
        let mut rx = Rx {
            queue: transport.queue(RX_QUEUE, QUEUE_SIZE)?,
            merged: Vec::with_capacity(MERGED_FRAME_MAX),
        };
        let tx = Tx {
            queue: transport.queue(TX_QUEUE, QUEUE_SIZE)?,
            spare: Vec::new(),
            large: 0,
            checksums: transport.has(FEATURE_CSUM),
            segmentation: transport.has(FEATURE_HOST_TSO4),
        };
        let mac = if transport.has(FEATURE_MAC) {
            core::array::from_fn(|at| transport.config_byte(at))
        } else {
            mac
        };
        if mac[0] & 1 != 0 || mac == [0; 6] {
            return Err(OpenError::Config);
        }
        rx.fill();
        transport.ready();
        let mut net = Net {
            transport,
            rx,
            tx,
            mac,
        };
        net.kick();
        Ok(net)
    }
}

impl Nic for Net {
    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn has_frames(&self) -> bool {
        self.rx.queue.has_finished()
    }

    fn kick(&mut self) {
        if self.tx.queue.take_kick() {
            self.transport.notify(TX_QUEUE);
        }
        if self.rx.queue.take_kick() {
            self.transport.notify(RX_QUEUE);
        }
    }
}

/// Segments may only come merged: without merging each buffer would have to hold the largest.
fn choose(offered: u64) -> u64 {
    let mut wanted = FEATURE_MAC | FEATURE_GUEST_CSUM | FEATURE_CSUM | FEATURE_MRG_RXBUF;
    if offered & FEATURE_CSUM != 0 {
        wanted |= FEATURE_HOST_TSO4;
    }
    if offered & FEATURE_GUEST_CSUM != 0 && offered & FEATURE_MRG_RXBUF != 0 {
        wanted |= FEATURE_GUEST_TSO4;
    }
    wanted
}

impl Rx {
    fn fill(&mut self) {
        while self.queue.room() > 0 {
            self.give_back(alloc::vec![0; RX_BUFFER_BYTES]);
        }
    }

    fn give_back(&mut self, buffer: Vec<u8>) {
        // There is room: every buffer came out of this very queue, or `fill` looked.
        let _ = self.queue.add([Piece::for_device(buffer)]);
    }

    /// The next whole frame, behind its header.
    fn next(&mut self) -> Option<Received> {
        loop {
            let (buffer, filled) = first(self.queue.pop()?)?;
            let count = offload::buffer_count(&buffer[..filled]);
            let received = if count <= 1 {
                Received::Single { buffer, filled }
            } else {
                self.merge(&buffer[..filled], count - 1);
                self.give_back(buffer);
                Received::Merged
            };
            let bytes = received.bytes(&self.merged);
            if bytes.len() > HEADER_BYTES && offload::is_whole(&bytes[..HEADER_BYTES], &bytes[HEADER_BYTES..])
            {
                return Some(received);
            }
            self.finish(received);
        }
    }

    /// Puts a frame together; one that is too long or incomplete stays short and fails its checks.
    fn merge(&mut self, start: &[u8], more: usize) {
        self.merged.clear();
        self.merged.extend_from_slice(start);
        for _ in 0..more {
            let Some((buffer, filled)) = self.queue.pop().and_then(first) else {
                return self.merged.clear();
            };
            if self.merged.len() + filled <= MERGED_FRAME_MAX {
                self.merged.extend_from_slice(&buffer[..filled]);
            }
            self.give_back(buffer);
        }
    }

    fn finish(&mut self, received: Received) {
        if let Received::Single { buffer, .. } = received {
            self.give_back(buffer);
        }
    }
}

fn first(finished: Finished) -> Option<(Vec<u8>, usize)> {
    let [buffer, ..] = finished.buffers;
    let buffer = buffer?;
    let filled = finished.written.min(buffer.len());
    Some((buffer, filled))
}

/// A frame that arrived.
#[derive(Debug)]
enum Received {
    Single { buffer: Vec<u8>, filled: usize },
    Merged,
}

impl Received {
    fn bytes<'a>(&'a self, merged: &'a [u8]) -> &'a [u8] {
        match self {
            Received::Single { buffer, filled } => &buffer[..*filled],
            Received::Merged => merged,
        }
    }
}

impl Tx {
    /// Takes back what was sent; says whether another frame, even a large one, can go out.
    fn has_room(&mut self) -> bool {
        while let Some(finished) = self.queue.pop() {
            let [Some(buffer), ..] = finished.buffers else {
                continue;
            };
            if buffer.len() > HEADER_BYTES + FRAME_MAX {
                self.large -= 1;
            } else {
                self.spare.push(buffer);
            }
        }
        self.queue.room() > 0 && self.large < LARGE_IN_FLIGHT
    }

    fn buffer(&mut self, len: usize) -> Vec<u8> {
        let mut buffer = if len > FRAME_MAX {
            self.large += 1;
            Vec::with_capacity(HEADER_BYTES + len)
        } else {
            self.spare
                .pop()
                .unwrap_or_else(|| Vec::with_capacity(HEADER_BYTES + FRAME_MAX))
        };
        buffer.clear();
        buffer.resize(HEADER_BYTES + len, 0);
        buffer
    }
}

impl Device for Net {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        // A frame may need an answer at once, so it is taken only when one could be sent.
        if !self.rx.queue.has_finished() || !self.tx.has_room() {
            return None;
        }
        let received = self.rx.next()?;
        Some((
            RxToken {
                rx: &mut self.rx,
                received,
            },
            TxToken {
                tx: &mut self.tx,
                segment: None,
            },
        ))
    }

    fn transmit(&mut self, _now: Instant) -> Option<TxToken<'_>> {
        self.tx.has_room().then_some(TxToken {
            tx: &mut self.tx,
            segment: None,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_MAX;
        // Received checksums are judged in `offload`, which knows what the device vouches for.
        capabilities.checksum.tcp = if self.tx.checksums {
            Checksum::None
        } else {
            Checksum::Tx
        };
        if self.tx.segmentation {
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(LARGE_FRAME_MAX);
        }
        capabilities
    }
}

/// A frame that arrived, for smoltcp to look at once.
#[derive(Debug)]
pub struct RxToken<'a> {
    rx: &'a mut Rx,
    received: Received,
}

impl smoltcp::phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, look: F) -> R {
        let result = look(&self.received.bytes(&self.rx.merged)[HEADER_BYTES..]);
        self.rx.finish(self.received);
        result
    }
}

/// Room for one frame to go out.
#[derive(Debug)]
pub struct TxToken<'a> {
    tx: &'a mut Tx,
    segment: Option<NonZeroU16>,
}

impl smoltcp::phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut buffer = self.tx.buffer(len);
        let result = write(&mut buffer[HEADER_BYTES..]);
        if self.tx.checksums {
            offload::leave_to_device(&mut buffer, self.segment);
        }
        // There is room: the token exists.
        let _ = self.tx.queue.add([Piece::from_driver(buffer)]);
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size;
    }
}
