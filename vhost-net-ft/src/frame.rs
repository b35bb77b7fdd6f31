//! Frames and their virtio header: how they are read out of chains, kept, and made (RARP).
//!
//! Called by `rx.rs`, `tx.rs` and `session.rs`. Pure bytes: it knows no queue and no tap, and writes no guest memory.

use std::fmt;
use std::str::FromStr;

use lockstep_staging::chain::Chain;
use lockstep_staging::limits::FRAME_BYTES_MAX;
use thiserror::Error;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use vm_memory::{Bytes, GuestMemory};

use crate::limits::{POOL_FRAME_BYTES, POOL_FRAMES};

/// Bytes of `struct virtio_net_hdr_v1`, which comes before every frame on either side.
pub const HEADER: usize = 12;

/// The same for a driver of the time before version 1 that merges no buffers: it has no count of them.
pub const LEGACY_HEADER: usize = 10;

/// Where in the header the count of buffers lies.
pub const NUM_BUFFERS: usize = 10;

/// Destination, source and type: no frame is shorter.
const ETHERNET_HEADER: usize = 14;

/// The shortest frame that a wire carries, without its checksum.
const WIRE_MIN: usize = 60;

/// A chain that is no frame.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BadFrame {
    /// Neither header nor frame fits, or the frame is longer than any.
    #[error("A transmitted chain has {0} bytes, which no frame has")]
    Length(usize),
    /// Memory that was there when the chain was checked is gone.
    #[error("A transmitted chain lies outside guest memory")]
    NoMemory,
}

/// How long the header is that a driver with these features puts before its frames and expects before ours.
pub fn header_of(acked: u64) -> usize {
    const WITH_COUNT: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_NET_F_MRG_RXBUF;
    if acked & WITH_COUNT == 0 {
        LEGACY_HEADER
    } else {
        HEADER
    }
}

/// Whether so many bytes, header included, may be a frame.
pub fn is_frame_length(length: usize) -> bool {
    (LEGACY_HEADER + ETHERNET_HEADER..=FRAME_BYTES_MAX).contains(&length)
}

/// Copies the frame of a transmitted chain, header first, into `frame`; what was in there is replaced.
pub fn copy_frame<M: GuestMemory>(memory: &M, chain: &Chain, frame: &mut Vec<u8>) -> Result<(), BadFrame> {
    let length = chain.readable.iter().map(|segment| segment.length as usize).sum();
    if !is_frame_length(length) {
        return Err(BadFrame::Length(length));
    }
    frame.resize(length, 0);
    let mut at = 0;
    for segment in &chain.readable {
        let end = at + segment.length as usize;
        memory
            .read_slice(&mut frame[at..end], segment.start)
            .map_err(|_| BadFrame::NoMemory)?;
        at = end;
    }
    Ok(())
}

/// Buffers of frames that left, for frames to come.
#[derive(Debug, Default)]
pub struct Pool {
    free: Vec<Vec<u8>>,
}

impl Pool {
    /// A buffer with any contents.
    pub fn take(&mut self) -> Vec<u8> {
        self.free.pop().unwrap_or_default()
    }

    /// Gives a buffer back.
    pub fn put(&mut self, buffer: Vec<u8>) {
        if self.free.len() < POOL_FRAMES && buffer.capacity() <= POOL_FRAME_BYTES {
            self.free.push(buffer);
        }
    }
}

/// An Ethernet address of one station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac([u8; 6]);

/// Text that is no station's address.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not the Ethernet address of one station, as 52:54:00:12:34:56")]
pub struct BadMac(String);

impl Mac {
    /// The address as it travels.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(text.to_owned());
        let octets = text
            .split(':')
            .map(|part| {
                if part.len() == 2 {
                    u8::from_str_radix(part, 16).ok()
                } else {
                    None
                }
            })
            .collect::<Option<Vec<u8>>>()
            .ok_or_else(bad)?;
        let octets = <[u8; 6]>::try_from(octets).map_err(|_| bad())?;
        // Group addresses (lowest bit) and all zeros belong to nobody.
        if octets[0] & 1 != 0 || octets == [0; 6] {
            Err(bad())
        } else {
            Ok(Self(octets))
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A broadcast RARP request from `mac`, header first: every bridge on the way learns where the station now is.
pub fn announcement(mac: Mac) -> Vec<u8> {
    const BROADCAST: [u8; 6] = [0xff; 6];
    const RARP: [u8; 2] = [0x80, 0x35];
    // Hardware Ethernet, protocol IPv4, address lengths 6 and 4, operation "request reverse".
    const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 3];
    const NO_IP: [u8; 4] = [0; 4];
    let station = mac.octets();
    let mut frame = vec![0; HEADER];
    for part in [
        &BROADCAST[..],
        &station,
        &RARP,
        &REQUEST,
        &station,
        &NO_IP,
        &station,
        &NO_IP,
    ] {
        frame.extend_from_slice(part);
    }
    frame.resize(HEADER + WIRE_MIN, 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_text() {
        let mac: Mac = "52:54:00:12:34:fe".parse().unwrap();
        assert_eq!(mac.octets(), [0x52, 0x54, 0, 0x12, 0x34, 0xfe]);
        assert_eq!(mac.to_string(), "52:54:00:12:34:fe");
    }

    #[test]
    fn what_no_station_has_is_refused() {
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "1:2:3:4:5:6",
            "gg:54:00:12:34:56",
            "+1:00:00:00:00:00",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
        assert!("01:00:5e:00:00:01".parse::<Mac>().is_err(), "a group");
        assert!("00:00:00:00:00:00".parse::<Mac>().is_err(), "nobody");
    }

    #[test]
    fn an_announcement_is_a_broadcast_rarp_request_from_the_station() {
        let frame = announcement("52:54:00:12:34:56".parse().unwrap());
        assert_eq!(frame.len(), HEADER + WIRE_MIN);
        let wire = &frame[HEADER..];
        assert_eq!(wire[..6], [0xff; 6]);
        assert_eq!(wire[6..12], [0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        assert_eq!(wire[12..14], [0x80, 0x35]);
        assert_eq!(wire[20..22], [0, 3]);
        assert_eq!(wire[22..28], wire[6..12]);
        assert_eq!(wire[32..38], wire[6..12]);
    }

    #[test]
    fn only_a_driver_of_the_time_before_version_1_that_merges_no_buffers_has_the_short_header() {
        assert_eq!(header_of(0), LEGACY_HEADER);
        assert_eq!(header_of(1 << VIRTIO_F_VERSION_1), HEADER);
        assert_eq!(header_of(1 << VIRTIO_NET_F_MRG_RXBUF), HEADER);
    }

    #[test]
    fn the_pool_keeps_few_and_only_small_buffers() {
        let mut pool = Pool::default();
        pool.put(Vec::with_capacity(POOL_FRAME_BYTES + 1));
        assert!(pool.free.is_empty());
        (0..2 * POOL_FRAMES).for_each(|_| pool.put(Vec::with_capacity(100)));
        assert_eq!(pool.free.len(), POOL_FRAMES);
    }
}
