//! Why there is no connection, or no longer one, told so that a person can act on it.
//!
//! [`endpoint`](crate::endpoint) makes these, and whoever reads from a connection turns its end into one with
//! [`LinkError::of`]. It never decides whether to try again; it only says whether that can help.

use std::net::SocketAddr;

use quinn::ConnectionError;

use crate::pinning::{Refusal, RefusalNote};

/// Why there is no connection, or no longer one.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkError {
    /// We do not accept the certificate of the other side.
    #[error("Refused the peer at {address}")]
    PeerRefused {
        /// Where it is.
        address: SocketAddr,
        /// Why.
        source: Refusal,
    },
    /// The other side does not accept our certificate.
    #[error("The peer at {address} refuses our certificate: it is not pinned there")]
    RefusedByPeer {
        /// Where it is.
        address: SocketAddr,
    },
    /// The other side says that our certificate is not good today.
    #[error("The peer at {address} refuses our certificate: by its clock it is expired or not yet valid")]
    ExpiredByPeer {
        /// Where it is.
        address: SocketAddr,
    },
    /// The other side is there but speaks something else.
    #[error("The peer at {address} is no Lockstep process of the same kind: it does not speak our protocol")]
    OtherProtocol {
        /// Where it is.
        address: SocketAddr,
    },
    /// Nothing came back in time.
    #[error("The peer at {address} cannot be reached: no answer")]
    Unreachable {
        /// Where it should be.
        address: SocketAddr,
    },
    /// The other side ended the connection in words of our own protocol.
    #[error("The peer at {address} closed the connection: {reason}")]
    Closed {
        /// Where it is.
        address: SocketAddr,
        /// The code that it gave.
        code: u64,
        /// What it said.
        reason: String,
    },
    /// The connection ended in another way: the peer restarted, or the transport failed.
    #[error("The connection to {address} broke")]
    Broken {
        /// Where it is.
        address: SocketAddr,
        /// What quinn said.
        source: ConnectionError,
    },
    /// The connection could not even be tried.
    #[error("Cannot set up a connection to {address}: {reason}")]
    Setup {
        /// Where to.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
}

impl LinkError {
    /// What the end of a connection to `address` means.
    pub fn of(address: SocketAddr, error: ConnectionError) -> Self {
        match error {
            ConnectionError::TimedOut => Self::Unreachable { address },
            ConnectionError::ConnectionClosed(ref close) => match TlsAlert::of(close.error_code.into()) {
                Some(TlsAlert::AccessDenied) => Self::RefusedByPeer { address },
                Some(TlsAlert::CertificateExpired) => Self::ExpiredByPeer { address },
                Some(TlsAlert::NoApplicationProtocol) => Self::OtherProtocol { address },
                None => Self::Broken {
                    address,
                    source: error,
                },
            },
            ConnectionError::TransportError(ref fault) => match TlsAlert::of(fault.code.into()) {
                Some(TlsAlert::NoApplicationProtocol) => Self::OtherProtocol { address },
                _ => Self::Broken {
                    address,
                    source: error,
                },
            },
            ConnectionError::VersionMismatch => Self::OtherProtocol { address },
            ConnectionError::ApplicationClosed(close) => Self::Closed {
                address,
                code: close.error_code.into_inner(),
                reason: String::from_utf8_lossy(&close.reason).into_owned(),
            },
            other => Self::Broken {
                address,
                source: other,
            },
        }
    }

    /// Whether trying again can help without a person changing something first.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Closed { .. } | Self::Broken { .. }
        )
    }

    pub(crate) fn with_note(address: SocketAddr, error: ConnectionError, note: &RefusalNote) -> Self {
        match note.read() {
            Some(source) => Self::PeerRefused { address, source },
            None => Self::of(address, error),
        }
    }
}

/// The alerts that our own verifier makes the TLS library send.
enum TlsAlert {
    CertificateExpired,
    AccessDenied,
    NoApplicationProtocol,
}

impl TlsAlert {
    /// QUIC carries a TLS alert as 0x100 plus its number.
    fn of(quic_code: u64) -> Option<Self> {
        match quic_code {
            0x12d => Some(Self::CertificateExpired),
            0x131 => Some(Self::AccessDenied),
            0x178 => Some(Self::NoApplicationProtocol),
            _ => None,
        }
    }
}

/// An error and its causes in one line.
pub fn whole_sentence(error: &dyn std::error::Error) -> String {
    let mut sentence = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        sentence = format!("{sentence}: {error}");
        cause = error.source();
    }
    sentence
}
