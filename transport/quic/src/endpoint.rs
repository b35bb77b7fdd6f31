//! A UDP socket that speaks QUIC with pinned peers only: bind, connect, accept.
//!
//! The pair's link and the arbiter's client and server are built on it. Must be used inside a tokio runtime.
//! It never accepts a peer whose certificate is not pinned, never resumes an earlier session (a resumed one
//! would skip the certificate check), and never sends data before the handshake is done. When many strangers are at
//! the door, it lets nobody in whose address may be another's.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, ConnectionError, Incoming, ServerConfig, TokioRuntime};
use rustls::pki_types::CertificateDer;
use tokio::time::timeout;
use tracing::{debug, trace};

use crate::config::{CROWD, LinkConfig};
use crate::crowd::{Crowd, Place};
use crate::failure::LinkError;
use crate::identity::{Identity, PinnedPeer};
use crate::pinning::{Pins, RefusalNote};
use crate::tls::{client_config, endpoint_config, fleeting_reset_key, lasting_reset_key, server_config};

/// The name in the TLS hello; nobody checks it, since certificates are pinned.
const SERVER_NAME: &str = "lockstep";

/// A socket, who we are, and whom we accept.
#[derive(Clone, Debug)]
pub struct PinnedEndpoint {
    endpoint: quinn::Endpoint,
    identity: Identity,
    pins: Pins,
    config: LinkConfig,
    crowd: Crowd,
}

impl PinnedEndpoint {
    /// Binds `address`; accepts connections and can make them.
    pub fn listen(
        address: SocketAddr,
        identity: Identity,
        pins: Pins,
        config: LinkConfig,
    ) -> Result<Self, EndpointError> {
        let server = server_config(&identity, &pins, &config, RefusalNote::default())?;
        Self::bind(address, Some(server), identity, pins, config)
    }

    /// Binds a free port of the family of `towards`; can only make connections.
    pub fn dial_only(
        towards: SocketAddr,
        identity: Identity,
        pins: Pins,
        config: LinkConfig,
    ) -> Result<Self, EndpointError> {
        let any = match towards {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        Self::bind(any, None, identity, pins, config)
    }

    fn bind(
        address: SocketAddr,
        server: Option<ServerConfig>,
        identity: Identity,
        pins: Pins,
        config: LinkConfig,
    ) -> Result<Self, EndpointError> {
        let cannot = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => EndpointError::AddressInUse { address },
            _ => EndpointError::CannotBind { address, source },
        };
        let socket = UdpSocket::bind(address).map_err(cannot)?;
        enlarge_buffers(&socket, config.socket_buffer);
        let reset_key = match server {
            Some(_) => lasting_reset_key(&identity, config.alpn, socket.local_addr().map_err(cannot)?),
            // The next one has another port: it cannot speak for this one.
            None => fleeting_reset_key(),
        };
        let endpoint =
            quinn::Endpoint::new(endpoint_config(reset_key), server, socket, Arc::new(TokioRuntime))
                .map_err(cannot)?;
        Ok(Self {
            endpoint,
            identity,
            pins,
            config,
            crowd: Crowd::default(),
        })
    }

    /// The address that the socket really has (a port of 0 was replaced).
    pub fn local_address(&self) -> Result<SocketAddr, EndpointError> {
        self.endpoint
            .local_addr()
            .map_err(|source| EndpointError::Socket { source })
    }

    /// Makes a connection to `address`, or gives up after `within`.
    ///
    /// The other side judges our certificate only after this returns: its refusal is the error of the first read
    /// from the connection, and [`LinkError::of`] tells it apart.
    pub async fn connect(&self, address: SocketAddr, within: Duration) -> Result<Connection, LinkError> {
        let note = RefusalNote::default();
        let client =
            client_config(&self.identity, &self.pins, &self.config, note.clone()).map_err(|source| {
                LinkError::Setup {
                    address,
                    reason: source.to_string(),
                }
            })?;
        let connecting = self
            .endpoint
            .connect_with(client, address, SERVER_NAME)
            .map_err(|source| LinkError::Setup {
                address,
                reason: source.to_string(),
            })?;
        finish(timeout(within, connecting).await, address, &note)
    }

    /// The next stranger at the door; `None` once the endpoint is closed.
    ///
    /// Give its handshake to a task of its own: one stranger must not keep another waiting. In a crowd only those are handed
    /// out who have shown that their address is their own; the others are asked to, at the price of a round trip.
    pub async fn arrival(&self) -> Option<Arrival> {
        loop {
            let incoming = self.endpoint.accept().await?;
            if incoming.remote_address_validated() || !self.is_crowded() {
                return Some(self.arrived(incoming));
            }
            let from = incoming.remote_address();
            let asked = incoming.retry().is_ok();
            trace!(%from, asked, "A crowd is at the door; the address must be shown to be its own");
        }
    }

    /// Connections count like strangers: whoever bounds them together keeps room for those who come with an address of their own.
    fn is_crowded(&self) -> bool {
        self.crowd.count().max(self.endpoint.open_connections()) >= CROWD
    }

    fn arrived(&self, incoming: Incoming) -> Arrival {
        Arrival {
            incoming,
            identity: self.identity.clone(),
            pins: self.pins.clone(),
            config: self.config.clone(),
            _place: self.crowd.enter(),
        }
    }

    /// Which pinned peer is at the other end.
    pub fn peer_of(&self, connection: &Connection) -> Option<PinnedPeer> {
        let identity = connection.peer_identity()?;
        let chain = identity.downcast_ref::<Vec<CertificateDer<'static>>>()?;
        self.pins.find(chain.first()?).cloned()
    }

    /// How many connections are open, unfinished handshakes included.
    pub fn open_connections(&self) -> usize {
        self.endpoint.open_connections()
    }

    /// Closes every connection with this code and reason, and waits until the peers were told.
    pub async fn close(&self, code: u32, reason: &str) {
        self.endpoint.close(code.into(), reason.as_bytes());
        self.endpoint.wait_idle().await;
    }
}

/// A connection that somebody asked for and that was not answered yet.
#[derive(Debug)]
pub struct Arrival {
    incoming: Incoming,
    identity: Identity,
    pins: Pins,
    config: LinkConfig,
    /// Until the handshake is over.
    _place: Place,
}

impl Arrival {
    /// Where it says it comes from.
    pub fn from(&self) -> SocketAddr {
        self.incoming.remote_address()
    }

    /// Does the handshake, or gives up after `within`. Afterwards the peer is a pinned one.
    pub async fn handshake(self, within: Duration) -> Result<Connection, LinkError> {
        let address = self.from();
        let note = RefusalNote::default();
        let server =
            server_config(&self.identity, &self.pins, &self.config, note.clone()).map_err(|source| {
                LinkError::Setup {
                    address,
                    reason: source.to_string(),
                }
            })?;
        let connecting = self
            .incoming
            .accept_with(Arc::new(server))
            .map_err(|source| LinkError::with_note(address, source, &note))?;
        finish(timeout(within, connecting).await, address, &note)
    }

    /// Sends it away: there are too many.
    pub fn refuse(self) {
        self.incoming.refuse();
    }
}

/// Why a socket for QUIC cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Another process has the port.
    #[error("Another process already uses UDP address {address}; stop it or choose another port")]
    AddressInUse {
        /// The address that was asked for.
        address: SocketAddr,
    },
    /// The system refuses the address.
    #[error("Cannot bind UDP address {address}; is it an address of this host?")]
    CannotBind {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The socket is broken.
    #[error("Cannot use the UDP socket")]
    Socket {
        /// What the system said.
        source: io::Error,
    },
    /// The TLS library refuses our certificate or key.
    #[error("Cannot use our own certificate for TLS")]
    Tls {
        /// What the library said.
        #[from]
        source: rustls::Error,
    },
}

type Finished = Result<Result<Connection, ConnectionError>, tokio::time::error::Elapsed>;

fn finish(outcome: Finished, address: SocketAddr, note: &RefusalNote) -> Result<Connection, LinkError> {
    match outcome {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(LinkError::with_note(address, error, note)),
        Err(_) => Err(LinkError::Unreachable { address }),
    }
}

/// quinn leaves the kernel's default buffers, which a burst overflows. Less than asked for is not an error.
fn enlarge_buffers(socket: &UdpSocket, bytes: usize) {
    use rustix::net::sockopt;
    // The forced variant needs CAP_NET_ADMIN; the plain one is cut to net.core.{r,w}mem_max.
    let _ = sockopt::set_socket_recv_buffer_size_force(socket, bytes)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, bytes));
    let _ = sockopt::set_socket_send_buffer_size_force(socket, bytes)
        .or_else(|_| sockopt::set_socket_send_buffer_size(socket, bytes));
    // The kernel reports twice what it grants.
    let granted = sockopt::socket_recv_buffer_size(socket).unwrap_or(0) / 2;
    if granted < bytes {
        debug!(
            wanted = bytes,
            granted, "The receive buffer is smaller than wanted; raise net.core.rmem_max"
        );
    }
}
