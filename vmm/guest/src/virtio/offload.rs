//! Checksums and segmentation as the network header of virtio carries them. The network driver asks this file what a
//! received header vouches for and what to write before a frame that the device is to finish. No I/O.

use core::num::NonZeroU16;

use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpPacket};

/// Length of `virtio_net_hdr_v1`.
pub(super) const HEADER_BYTES: usize = 12;
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const ETHERNET_BYTES: usize = 14;
const TCP_CHECKSUM_OFFSET: usize = 16;

/// How many buffers a received frame lies in.
pub(super) fn buffer_count(header: &[u8]) -> usize {
    match header.get(10..12) {
        Some(count) => usize::from(u16::from_le_bytes([count[0], count[1]])),
        None => 1,
    }
}

/// Whether a received frame is whole: the device vouches for its TCP checksum, or it is right.
pub(super) fn is_whole(header: &[u8], frame: &[u8]) -> bool {
    let &[flags, segmentation, ..] = header else {
        return false;
    };
    flags & (NEEDS_CSUM | DATA_VALID) != 0 || segmentation != GSO_NONE || tcp_checksum_is_right(frame)
}

/// True for everything but TCP as well: other checksums are the stack's business.
fn tcp_checksum_is_right(frame: &[u8]) -> bool {
    let Ok(ethernet) = EthernetFrame::new_checked(frame) else {
        return true;
    };
    if ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return true;
    }
    let Ok(ip) = Ipv4Packet::new_checked(ethernet.payload()) else {
        return true;
    };
    if ip.next_header() != IpProtocol::Tcp {
        return true;
    }
    let Ok(tcp) = TcpPacket::new_checked(ip.payload()) else {
        return true;
    };
    tcp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into())
}

/// Leaves the TCP checksum of an outgoing frame to the device, and its segmentation where a size is given. Other frames
/// keep a header of zeros.
pub(super) fn leave_to_device(buffer: &mut [u8], segment: Option<NonZeroU16>) {
    let Some((header, frame)) = buffer.split_at_mut_checked(HEADER_BYTES) else {
        return;
    };
    let Some(place) = tcp_place(frame) else { return };
    let sum = pseudo_header_sum(frame, place.length);
    frame[place.start + TCP_CHECKSUM_OFFSET..][..2].copy_from_slice(&sum.to_be_bytes());
    header[0] = NEEDS_CSUM;
    header[6..8].copy_from_slice(&(place.start as u16).to_le_bytes());
    header[8..10].copy_from_slice(&(TCP_CHECKSUM_OFFSET as u16).to_le_bytes());
    let Some(size) = segment else { return };
    if place.length > place.header + usize::from(size.get()) {
        header[1] = GSO_TCPV4;
        header[2..4].copy_from_slice(&((place.start + place.header) as u16).to_le_bytes());
        header[4..6].copy_from_slice(&size.get().to_le_bytes());
    }
}

/// Where TCP lies in a frame.
struct TcpPlace {
    start: usize,
    header: usize,
    length: usize,
}

fn tcp_place(frame: &[u8]) -> Option<TcpPlace> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    if ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
    if ip.next_header() != IpProtocol::Tcp {
        return None;
    }
    let tcp = TcpPacket::new_checked(ip.payload()).ok()?;
    let start = ETHERNET_BYTES + usize::from(ip.header_len());
    Some(TcpPlace {
        start,
        header: usize::from(tcp.header_len()),
        length: ip.payload().len(),
    })
}

/// The sum that TCP's checksum begins with: addresses, protocol and length; folded, not complemented.
fn pseudo_header_sum(frame: &[u8], length: usize) -> u16 {
    let addresses = &frame[ETHERNET_BYTES + 12..ETHERNET_BYTES + 20];
    let words = addresses
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum = words.sum::<u32>() + u32::from(u8::from(IpProtocol::Tcp)) + length as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// A TCP segment with a right checksum, recorded nowhere: made by hand.
    fn segment() -> Vec<u8> {
        let mut frame = std::vec![0; 14 + 20 + 20 + 5];
        frame[12..14].copy_from_slice(&[8, 0]);
        let mut ip = Ipv4Packet::new_unchecked(&mut frame[14..]);
        ip.set_version(4);
        ip.set_header_len(20);
        ip.set_total_len(45);
        ip.set_next_header(IpProtocol::Tcp);
        ip.set_src_addr([10, 0, 0, 1].into());
        ip.set_dst_addr([10, 0, 0, 2].into());
        ip.fill_checksum();
        let mut tcp = TcpPacket::new_unchecked(&mut frame[34..]);
        tcp.set_header_len(20);
        tcp.set_src_port(1);
        tcp.set_dst_port(2);
        tcp.payload_mut().copy_from_slice(b"hello");
        tcp.fill_checksum(
            &smoltcp::wire::IpAddress::v4(10, 0, 0, 1),
            &smoltcp::wire::IpAddress::v4(10, 0, 0, 2),
        );
        frame
    }

    #[test]
    fn a_spoilt_segment_is_noticed_unless_the_device_vouches_for_it() {
        let mut frame = segment();
        assert!(is_whole(&[0; HEADER_BYTES], &frame));
        *frame.last_mut().unwrap() ^= 1;
        assert!(!is_whole(&[0; HEADER_BYTES], &frame));
        let mut vouched = [0; HEADER_BYTES];
        vouched[0] = DATA_VALID;
        assert!(is_whole(&vouched, &frame));
    }

    #[test]
    fn a_checksum_left_to_the_device_comes_out_as_the_stack_would_have_made_it() {
        let right = segment();
        let mut buffer = std::vec![0; HEADER_BYTES];
        buffer.extend_from_slice(&right);
        leave_to_device(&mut buffer, None);
        // What the device does: sum from csum_start on, complement, store at csum_offset.
        let start = HEADER_BYTES + usize::from(u16::from_le_bytes([buffer[6], buffer[7]]));
        let offset = usize::from(u16::from_le_bytes([buffer[8], buffer[9]]));
        let mut padded = buffer[start..].to_vec();
        padded.push(0);
        let mut sum: u32 = padded
            .chunks_exact(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        buffer[start + offset..][..2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        assert_eq!(&buffer[HEADER_BYTES..], &right[..]);
    }
}
