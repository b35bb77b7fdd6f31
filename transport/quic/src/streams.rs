//! The streams of a pair's connection: which is which, and messages on them. The hello and the drivers read and
//! write through here. It never judges what a message means.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use lockstep_protocol::{Message, MessageDecoder, PeerLost, encode_message};
use quinn::{Connection, ConnectionError, ReadError, ReadExactError, RecvStream, SendStream, WriteError};

use crate::failure::{LinkError, whole_sentence};

/// The first byte of every stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum StreamKind {
    Control = 1,
    Log = 2,
    Ack = 3,
    Heartbeat = 4,
    State = 5,
    Account = 6,
}

impl StreamKind {
    /// A heartbeat behind a megabyte of log would come too late to say that we live.
    fn priority(self) -> i32 {
        match self {
            Self::Heartbeat => 3,
            Self::Ack => 2,
            Self::Control => 1,
            Self::Log | Self::State | Self::Account => 0,
        }
    }

    fn of(byte: u8) -> Option<Self> {
        [
            Self::Control,
            Self::Log,
            Self::Ack,
            Self::Heartbeat,
            Self::State,
            Self::Account,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// What ended a stream.
#[derive(Clone, Debug)]
pub(crate) enum StreamFault {
    /// The connection under it is gone.
    Connection(ConnectionError),
    /// The peer ended this stream alone: an honest one does not.
    Ended,
    /// The peer said what cannot be said.
    Said(String),
}

impl StreamFault {
    /// What it means while a session runs.
    pub(crate) fn lost(self, address: SocketAddr) -> PeerLost {
        match self {
            Self::Connection(error) => PeerLost::Disconnected(whole_sentence(&LinkError::of(address, error))),
            Self::Ended => PeerLost::Misbehaved("it ended a stream of the session".into()),
            Self::Said(what) => PeerLost::Misbehaved(what),
        }
    }
}

impl From<ReadError> for StreamFault {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::ConnectionLost(error) => Self::Connection(error),
            _ => Self::Ended,
        }
    }
}

impl From<ReadExactError> for StreamFault {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::ReadError(error) => error.into(),
            ReadExactError::FinishedEarly(_) => Self::Ended,
        }
    }
}

impl From<WriteError> for StreamFault {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => Self::Connection(error),
            _ => Self::Ended,
        }
    }
}

impl From<ConnectionError> for StreamFault {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(error)
    }
}

/// Writes messages to one stream.
#[derive(Debug)]
pub(crate) struct MessageWriter {
    stream: SendStream,
    buffer: BytesMut,
}

impl MessageWriter {
    pub(crate) fn new(stream: SendStream) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
        }
    }

    pub(crate) async fn write(&mut self, message: &Message) -> Result<(), StreamFault> {
        encode_message(&mut self.buffer, message);
        Ok(self.stream.write_chunk(self.buffer.split().freeze()).await?)
    }

    /// Says that nothing more comes, and waits until the peer has all of it or is gone.
    pub(crate) async fn finish(&mut self) {
        if self.stream.finish().is_ok() {
            let _ = self.stream.stopped().await;
        }
    }
}

/// Reads messages from one stream.
#[derive(Debug)]
pub(crate) struct MessageReader {
    stream: RecvStream,
    decoder: MessageDecoder,
    rest: Bytes,
}

impl MessageReader {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            decoder: MessageDecoder::new(),
            rest: Bytes::new(),
        }
    }

    /// The next message. Nothing is lost when the caller gives up waiting.
    pub(crate) async fn next(&mut self) -> Result<Message, StreamFault> {
        loop {
            match self.decoder.decode(&mut self.rest) {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(fault) => return Err(StreamFault::Said(fault.to_string())),
            }
            let chunk = self.stream.read_chunk(usize::MAX, true).await?;
            self.rest = chunk.ok_or(StreamFault::Ended)?.bytes;
        }
    }
}

/// Opens a stream of a kind. The kind byte goes out at once: the peer sees no stream without a byte on it.
pub(crate) async fn open(connection: &Connection, kind: StreamKind) -> Result<SendStream, StreamFault> {
    let mut stream = connection.open_uni().await?;
    introduce(&mut stream, kind).await?;
    Ok(stream)
}

/// Opens the control stream.
pub(crate) async fn open_control(
    connection: &Connection,
) -> Result<(MessageWriter, MessageReader), StreamFault> {
    let (mut send, receive) = connection.open_bi().await?;
    introduce(&mut send, StreamKind::Control).await?;
    Ok((MessageWriter::new(send), MessageReader::new(receive)))
}

async fn introduce(stream: &mut SendStream, kind: StreamKind) -> Result<(), StreamFault> {
    stream
        .set_priority(kind.priority())
        .map_err(|_| StreamFault::Ended)?;
    Ok(stream.write_all(&[kind as u8]).await?)
}

/// The control stream that the peer opens.
pub(crate) async fn accept_control(
    connection: &Connection,
) -> Result<(MessageWriter, MessageReader), StreamFault> {
    let (send, mut receive) = connection.accept_bi().await?;
    match read_kind(&mut receive).await? {
        StreamKind::Control => Ok((MessageWriter::new(send), MessageReader::new(receive))),
        other => Err(StreamFault::Said(format!(
            "A {other:?} stream where the control stream should be"
        ))),
    }
}

/// The heartbeat stream and one other that the peer opens, in this order; they may come in any.
pub(crate) async fn accept_with_heartbeat(
    connection: &Connection,
    other: StreamKind,
) -> Result<(RecvStream, RecvStream), StreamFault> {
    let (first_kind, first) = accept(connection).await?;
    let (second_kind, second) = accept(connection).await?;
    match (first_kind, second_kind) {
        (StreamKind::Heartbeat, kind) if kind == other => Ok((first, second)),
        (kind, StreamKind::Heartbeat) if kind == other => Ok((second, first)),
        strange => Err(StreamFault::Said(format!("Streams of kinds {strange:?}"))),
    }
}

/// A stream of this kind, which the peer opens.
pub(crate) async fn accept_only(
    connection: &Connection,
    wanted: StreamKind,
) -> Result<RecvStream, StreamFault> {
    match accept(connection).await? {
        (kind, stream) if kind == wanted => Ok(stream),
        (other, _) => Err(StreamFault::Said(format!(
            "A {other:?} stream where the one of kind {wanted:?} should be"
        ))),
    }
}

async fn accept(connection: &Connection) -> Result<(StreamKind, RecvStream), StreamFault> {
    let mut stream = connection.accept_uni().await?;
    Ok((read_kind(&mut stream).await?, stream))
}

async fn read_kind(stream: &mut RecvStream) -> Result<StreamKind, StreamFault> {
    let mut byte = [0];
    stream.read_exact(&mut byte).await?;
    StreamKind::of(byte[0])
        .ok_or_else(|| StreamFault::Said(format!("A stream of unknown kind {:#04x}", byte[0])))
}
