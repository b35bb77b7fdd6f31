//! A log that goes nowhere: kept in the bytes that would cross the wire, and given back as if it had.
//!
//! The recording of the micro guest uses it, and so does the example `replay_linux`. It never loses its peer.

use bytes::{Bytes, BytesMut};
use lockstep_protocol::codec::{LogFault, RecordDecoder, RecordEncoder};
use lockstep_protocol::ids::{LogOffset, Position};
use lockstep_protocol::record::{Input, Record};
use lockstep_vmm::ft::record::{LogSink, PeerLost};
use lockstep_vmm::ft::replay::LogSource;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A log that is only kept.
#[derive(Clone, Default)]
pub(crate) struct MemoryLog(Arc<Mutex<Encoded>>);

#[derive(Default)]
struct Encoded {
    encoder: RecordEncoder,
    bytes: BytesMut,
    end: LogOffset,
}

impl MemoryLog {
    /// What would have gone over the wire so far.
    pub(crate) fn bytes(&self) -> Bytes {
        self.encoded().bytes.clone().freeze()
    }

    fn encoded(&self) -> MutexGuard<'_, Encoded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogSink for MemoryLog {
    fn append(&mut self, position: Position, inputs: &[Input<&[u8]>]) -> Result<LogOffset, PeerLost> {
        let log = &mut *self.encoded();
        let start = log.end;
        for (nth, input) in (1..).zip(inputs) {
            let record = Record {
                position,
                closes: nth == inputs.len(),
                input: input.borrowed(),
            };
            log.encoder.encode(&mut log.bytes, &record);
            log.end = log.end.next();
        }
        Ok(start)
    }

    fn is_lost(&self) -> bool {
        false
    }

    fn end(&self) -> LogOffset {
        self.encoded().end
    }
}

/// A log that was received to its end.
pub(crate) struct Given(pub(crate) VecDeque<Record>);

impl LogSource for Given {
    fn next(&mut self) -> Option<Record> {
        self.0.pop_front()
    }

    fn executed(&mut self, _: Position) {}

    fn diverged(&mut self, _: Position, _: &str) -> bool {
        false
    }

    fn counted(&mut self, _: &[u64]) {}

    fn healed(&mut self) {}
}

/// The records in `log`, which is whole.
pub(crate) fn decode(mut log: Bytes) -> Result<VecDeque<Record>, LogFault> {
    let mut decoder = RecordDecoder::new();
    let mut records = VecDeque::new();
    while let Some(record) = decoder.decode(&mut log)? {
        records.push_back(record);
    }
    Ok(records)
}
