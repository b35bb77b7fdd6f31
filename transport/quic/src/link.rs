//! The front door of the crate for a VMM: become one half of a pair, or be told in one sentence why not. Blocking
//! calls; the QUIC work runs on a thread of its own, which ends when the peer is lost.

mod backup;
mod primary;
mod shared;

pub use backup::{BackupEvents, BackupLink, Delivered};
pub use primary::{PrimaryEvents, PrimaryLink, Room};

pub(crate) use backup::{BackupShared, SessionOver};
pub(crate) use primary::PrimaryShared;
pub(crate) use shared::Order;

use std::net::SocketAddr;
use std::time::Duration;

use lockstep_protocol::{BadTiming, Hello, Refusal, Sentence, WindowLimit};

use crate::driver;
use crate::endpoint::EndpointError;
use crate::failure::LinkError;
use crate::identity::{Identity, PinnedPeer};
use crate::session::CLOSED_REFUSED;
use crate::streams::StreamFault;

/// What a host needs to become one half of a pair.
#[derive(Clone, Debug)]
pub struct PairConfig {
    /// Where the backup listens: bound by the backup, dialled by the primary.
    pub address: SocketAddr,
    /// Who we are.
    pub identity: Identity,
    /// The one certificate that we accept.
    pub peer: PinnedPeer,
    /// What must be equal on both hosts, with the term, the start of the log and the timing.
    pub hello: Hello,
    /// How much of the log may be unacked.
    pub window: WindowLimit,
    /// How long to wait for the other host to be there at all.
    pub patience: Duration,
}

/// Why there is no pair. The text of the last cause is for the operator.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// No pair can live with this timing.
    #[error(transparent)]
    Timing(#[from] BadTiming),
    /// The socket or our own certificate cannot be used.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// No connection to a recognised peer.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// We refuse the other host.
    #[error(transparent)]
    Refused(Refusal),
    /// The other host refuses us; this is what it said.
    #[error("{0}")]
    RefusedByPeer(Sentence),
    /// The other host is no honest peer.
    #[error("The other host broke the protocol: {0}")]
    Misbehaved(String),
    /// The backup waited and no primary came.
    #[error("No primary came to {address} within {patience:?}{}", last.as_ref().map(|l| format!("; the last who tried: {l}")).unwrap_or_default())]
    NobodyCame {
        /// Where we listened.
        address: SocketAddr,
        /// How long.
        patience: Duration,
        /// What was wrong with the last who tried.
        last: Option<String>,
    },
    /// The spare is there, but does not put in place what it gets.
    #[error("The other host took nothing more of the copy for {0:?}; its disk may hang")]
    Stuck(Duration),
    /// The thread that drives the connection cannot do its work.
    #[error("The connection's own thread failed: {0}")]
    Driver(String),
}

impl PairError {
    /// What the end of a stream means before there is a session.
    pub(crate) fn of(address: SocketAddr, fault: StreamFault) -> Self {
        match fault {
            StreamFault::Connection(error) => match LinkError::of(address, error) {
                LinkError::Closed { code, reason, .. } if code == u64::from(CLOSED_REFUSED) => {
                    Self::RefusedByPeer(Sentence::new(&reason))
                }
                other => Self::Link(other),
            },
            StreamFault::Ended => Self::Misbehaved("it ended a stream during the hello".into()),
            StreamFault::Said(what) => Self::Misbehaved(what),
        }
    }

    /// Whether trying again can help without a person changing something first.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Link(error) if error.may_pass())
    }

    /// Whether a recognised peer and we are no pair: both must be told, and a person must act.
    pub(crate) fn is_mismatch(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::RefusedByPeer(_))
    }
}

/// Connects to the backup and returns when the hello has passed. `events` is called on the driver's thread.
pub fn connect_primary(config: PairConfig, events: Box<dyn PrimaryEvents>) -> Result<PrimaryLink, PairError> {
    config.hello.timing.check()?;
    driver::start_primary(config, events)
}

/// Listens for the primary and returns when the hello has passed. `events` is called on the driver's thread.
pub fn listen_backup(config: PairConfig, events: Box<dyn BackupEvents>) -> Result<BackupLink, PairError> {
    config.hello.timing.check()?;
    driver::start_backup(config, events)
}
