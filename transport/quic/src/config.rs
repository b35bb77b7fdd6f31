//! The limits of a connection, each with its reason.
//!
//! [`endpoint`](crate::endpoint) turns a [`LinkConfig`] into quinn's settings. Nothing here depends on who the
//! peer is.

use std::sync::Arc;
use std::time::Duration;

use lockstep_protocol::limits::MAX_TIMEOUT;
use quinn::congestion::CubicConfig;
use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

/// What two VMMs of a pair speak.
pub const ALPN_PAIR: &[u8] = b"lockstep-pair/1";
/// What two VMMs speak while one of them copies its VM to the other.
pub const ALPN_STATE: &[u8] = b"lockstep-state/1";
/// What a VMM and the arbiter speak.
pub const ALPN_ARBITER: &[u8] = b"lockstep-arbiter/1";

/// quinn hands ten packets to the kernel at once, and the kernel takes fewer than 65,507 bytes: with a larger
/// packet every such send fails, and the path is taken for a black hole. Also fits a jumbo frame.
pub const LARGEST_PACKET: u16 = 6000;
/// Every path of the internet carries this; probing finds the rest.
pub const FIRST_PACKET: u16 = 1200;
/// A pair is on one LAN. The default of 333 ms would make one lost packet of the handshake cost a second.
pub const FIRST_RTT: Duration = Duration::from_millis(10);
/// With 1 MiB a bulk transfer lost 2,113 packets in the kernel, with 8 MiB none.
pub const SOCKET_BUFFER: usize = 8 * 1024 * 1024;
/// QUIC's own acks matter to loss recovery only, and ours travel with them: one for ten packets spares both sides
/// wake-ups. Packets out of order are still acked at once.
pub const ACK_EVERY: VarInt = VarInt::from_u32(10);
/// What may be on its way before the first ack: `ACK_EVERY` of the largest packets, or the peer would sit on its ack for 25 ms
/// in each of the first flights. A copy of 7 MB took a third longer with the default of 14,720.
pub const FIRST_WINDOW: u64 = 64 * 1024;
/// How many strangers may be in the middle of a handshake.
pub const MAX_HANDSHAKES: usize = 64;
/// With so many at the door, whoever comes must show that its address is its own. Anybody can write another's address on its
/// first packet: half of the places are left to those who get the answer. Before that nobody pays for the round trip.
pub const CROWD: usize = MAX_HANDSHAKES / 2;
/// How many bytes a stranger may send before its handshake is looked at.
pub const MAX_HANDSHAKE_BYTES: u64 = 64 * 1024;

/// Longer than any pair's own time-out: heartbeats alone decide who is lost.
const PAIR_IDLE: Duration = MAX_TIMEOUT.saturating_mul(2);

/// The kind of a connection and its limits.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// Both sides must name the same one.
    pub alpn: &'static [u8],
    /// How much of one stream may be on its way unread: this, not the congestion window, bounds the queue.
    pub stream_window: u32,
    /// The same for all streams of the connection together.
    pub connection_window: u32,
    /// How much written data may wait for the peer's acknowledgement.
    pub send_window: u32,
    /// How many streams the peer may have open, of either kind.
    pub streams: u32,
    /// A connection that is silent for this long is closed. QUIC's own floor is 80 ms.
    pub idle_timeout: Duration,
    /// How often a silent connection is kept from being idle; none if its user speaks often enough.
    pub keep_alive: Option<Duration>,
    /// What to ask the kernel for; smaller is taken, and noted in the log.
    pub socket_buffer: usize,
}

impl LinkConfig {
    /// Between the two VMMs of a pair. Heartbeats of the pair's own find a dead peer before this time-out, whatever the timing.
    pub fn pair() -> Self {
        Self {
            alpn: ALPN_PAIR,
            stream_window: 4 * 1024 * 1024,
            connection_window: 8 * 1024 * 1024,
            send_window: 8 * 1024 * 1024,
            streams: 8,
            idle_timeout: PAIR_IDLE,
            keep_alive: None,
            socket_buffer: SOCKET_BUFFER,
        }
    }

    /// Between a VMM that runs unprotected and a spare: bulk one way, a word now and then.
    pub fn state() -> Self {
        Self {
            alpn: ALPN_STATE,
            stream_window: 8 * 1024 * 1024,
            connection_window: 16 * 1024 * 1024,
            send_window: 16 * 1024 * 1024,
            streams: 4,
            idle_timeout: Duration::from_secs(2),
            keep_alive: Some(Duration::from_millis(300)),
            socket_buffer: SOCKET_BUFFER,
        }
    }

    /// Between a VMM and the arbiter: a question and an answer now and then, kept warm in between.
    pub fn arbiter() -> Self {
        Self {
            alpn: ALPN_ARBITER,
            stream_window: 16 * 1024,
            connection_window: 64 * 1024,
            send_window: 64 * 1024,
            streams: 4,
            idle_timeout: Duration::from_secs(5),
            keep_alive: Some(Duration::from_secs(1)),
            socket_buffer: 256 * 1024,
        }
    }

    pub(crate) fn transport(&self) -> Arc<TransportConfig> {
        let mut probing = MtuDiscoveryConfig::default();
        probing.upper_bound(LARGEST_PACKET);
        let idle = IdleTimeout::try_from(self.idle_timeout).expect("an idle time-out is minutes at most");
        let mut acks = AckFrequencyConfig::default();
        acks.ack_eliciting_threshold(ACK_EVERY);
        let mut congestion = CubicConfig::default();
        congestion.initial_window(FIRST_WINDOW);

        let mut transport = TransportConfig::default();
        transport
            .ack_frequency_config(Some(acks))
            .stream_receive_window(VarInt::from_u32(self.stream_window))
            .receive_window(VarInt::from_u32(self.connection_window))
            .send_window(u64::from(self.send_window))
            .max_concurrent_bidi_streams(VarInt::from_u32(self.streams))
            .max_concurrent_uni_streams(VarInt::from_u32(self.streams))
            .datagram_receive_buffer_size(None)
            .max_idle_timeout(Some(idle))
            .keep_alive_interval(self.keep_alive)
            .initial_rtt(FIRST_RTT)
            .initial_mtu(FIRST_PACKET)
            .mtu_discovery_config(Some(probing))
            // Without fairness quinn ignores priorities while a stream has data: measured, an echo waited 383 ms.
            .send_fairness(true)
            .congestion_controller_factory(Arc::new(congestion));
        Arc::new(transport)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_peer_of_a_pair_with_the_longest_timeout_is_found_by_heartbeats_first() {
        assert!(LinkConfig::pair().idle_timeout > MAX_TIMEOUT);
    }
}
