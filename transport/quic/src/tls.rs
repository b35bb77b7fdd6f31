//! The TLS and QUIC settings of one connection: who we are, how the other side is checked, what is switched off.
//!
//! [`endpoint`](crate::endpoint) asks for them. Session resumption is off in both directions: a resumed session
//! would skip the certificate check, and with it the dates.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, ConnectionId, ConnectionIdGenerator, EndpointConfig, ServerConfig};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use rustls::client::Resumption;
use rustls::crypto::ring::default_provider;
use rustls::server::NoServerSessionStorage;
use rustls::version::TLS13;

use crate::config::{LARGEST_PACKET, LinkConfig, MAX_HANDSHAKE_BYTES, MAX_HANDSHAKES};
use crate::identity::Identity;
use crate::pinning::{PinVerifier, Pins, RefusalNote};

pub(crate) fn server_config(
    identity: &Identity,
    pins: &Pins,
    config: &LinkConfig,
    note: RefusalNote,
) -> Result<ServerConfig, rustls::Error> {
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(PinVerifier::new(pins.clone(), note)))
        .with_single_cert(vec![identity.certificate().clone()], identity.key().clone_key())?;
    tls.alpn_protocols = vec![config.alpn.to_vec()];
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    let crypto = QuicServerConfig::try_from(tls).expect("TLS 1.3 of ring has QUIC's initial cipher suite");
    let mut server = ServerConfig::with_crypto(Arc::new(crypto));
    server
        .transport_config(config.transport())
        .migration(false)
        .max_incoming(MAX_HANDSHAKES)
        .incoming_buffer_size(MAX_HANDSHAKE_BYTES)
        .incoming_buffer_size_total(MAX_HANDSHAKE_BYTES * MAX_HANDSHAKES as u64);
    Ok(server)
}

pub(crate) fn client_config(
    identity: &Identity,
    pins: &Pins,
    config: &LinkConfig,
    note: RefusalNote,
) -> Result<ClientConfig, rustls::Error> {
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinVerifier::new(pins.clone(), note)))
        .with_client_auth_cert(vec![identity.certificate().clone()], identity.key().clone_key())?;
    tls.alpn_protocols = vec![config.alpn.to_vec()];
    tls.resumption = Resumption::disabled();
    let crypto = QuicClientConfig::try_from(tls).expect("TLS 1.3 of ring has QUIC's initial cipher suite");
    let mut client = ClientConfig::new(Arc::new(crypto));
    client.transport_config(config.transport());
    Ok(client)
}

/// The reset tokens of a listener follow from the private key, so a process that was restarted can tell the peers of its
/// predecessor at once that their connections are gone, instead of letting them time out.
///
/// They also follow from what is said where. An endpoint answers whatever names a connection that it does not know with that
/// connection's token: two endpoints of one key would give each other's tokens away, and with them the power to end connections.
pub(crate) fn lasting_reset_key(identity: &Identity, alpn: &[u8], address: SocketAddr) -> hmac::Key {
    let secret = hmac::Key::new(hmac::HMAC_SHA256, identity.key().secret_der());
    let mut label = b"lockstep stateless reset of ".to_vec();
    label.extend_from_slice(alpn);
    label.extend_from_slice(format!(" at {address}").as_bytes());
    hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&secret, &label).as_ref())
}

/// The reset tokens of an endpoint that has no successor.
pub(crate) fn fleeting_reset_key() -> hmac::Key {
    hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).expect("the kernel always has random bytes")
}

pub(crate) fn endpoint_config(reset_key: hmac::Key) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    config
        .cid_generator(|| Box::new(RandomIds))
        .max_udp_payload_size(LARGEST_PACKET)
        .expect("the largest packet is one that QUIC knows");
    config
}

/// quinn's own generator takes the ids of a predecessor for noise and would not answer them with a reset.
struct RandomIds;

impl RandomIds {
    const LENGTH: usize = 8;
}

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; Self::LENGTH];
        SystemRandom::new()
            .fill(&mut id)
            .expect("the kernel always has random bytes");
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        Self::LENGTH
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
