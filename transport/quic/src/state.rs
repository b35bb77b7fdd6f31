//! The connection over which a running VM is copied to a new backup: beside the pair's own, so that bulk delays nothing.
//!
//! A spare dials every host that may run the VM ([`StateReceiver::dial`]); a host that runs it unprotected listens
//! ([`StateDoor`]) and sends pieces ([`StateSender`]). Blocking calls for two threads of the VMM; the QUIC work is done
//! by one thread of its own. What a piece means is the VMM's business. Nothing here claims a term or begins a log.

mod piece;
mod source;
mod spare;

pub use piece::{LongPiece, PIECE_MAX, PieceHead};
pub use source::{StateDoor, StateSender};
pub use spare::StateReceiver;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lockstep_protocol::Hello;
use tokio::runtime::{Builder, Runtime};

use crate::failure::LinkError;
use crate::identity::{Identity, PinnedPeer};
use crate::link::PairError;
use crate::streams::{MessageReader, MessageWriter};

/// How long a recognised peer may take for each step.
const STEP_WAIT: Duration = Duration::from_secs(5);
/// The code of a connection that is closed because nothing more is to be said.
const CLOSED_DONE: u32 = 3;

/// Who copies to whom.
#[derive(Clone, Debug)]
pub struct StateConfig {
    /// Where the host that runs the VM listens.
    pub address: SocketAddr,
    /// Who we are.
    pub identity: Identity,
    /// Whom we accept.
    pub peers: Vec<PinnedPeer>,
    /// What must be equal on both hosts. A spare knows no term and no start of a log; it takes those of the other side.
    pub hello: Hello,
}

/// Both ends of the control stream.
type Control = (MessageWriter, MessageReader);

/// One thread beside the caller's: packets move while the caller looks at pages.
fn runtime() -> Result<Arc<Runtime>, PairError> {
    Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("state")
        .enable_all()
        .build()
        .map(Arc::new)
        .map_err(|error| PairError::Driver(error.to_string()))
}

impl PairError {
    /// Whether nobody answered: the host is down, or runs nothing that needs a backup.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Link(LinkError::Unreachable { .. }))
    }
}
