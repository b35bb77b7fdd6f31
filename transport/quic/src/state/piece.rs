//! What a copy is cut into: so many bytes of a kind that only the VMMs know, behind a head of five bytes.
//!
//! Pieces are cut and put together by tasks on the thread that moves packets: the thread that looks at pages is woken once a
//! piece, not once a packet.

use bytes::{Bytes, BytesMut};
use quinn::{RecvStream, SendStream};
use tokio::sync::mpsc::{Receiver, Sender};

use crate::streams::StreamFault;

/// The longest piece: bounds what the receiver takes into memory for one.
pub const PIECE_MAX: usize = 4 << 20;

/// Pieces that wait between the two threads: while one is worked on, the next is there.
pub(super) const PIECES_WAITING: usize = 2;

/// What stands before a piece: how long it is, and of which kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceHead {
    /// Its bytes, at most [`PIECE_MAX`].
    pub length: usize,
    /// What it is; 0 is invalid.
    pub kind: u8,
}

/// A piece is longer than pieces are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("A piece of {0} bytes, {PIECE_MAX} are allowed")]
pub struct LongPiece(u32);

impl PieceHead {
    /// How many bytes it takes.
    pub const BYTES: usize = 5;

    /// What goes over the wire: the length (4 bytes, little-endian), then the kind.
    pub(super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let length = u32::try_from(self.length).expect("a piece is a few MiB at most");
        let [a, b, c, d] = length.to_le_bytes();
        [a, b, c, d, self.kind]
    }

    /// What another host wrote before a piece.
    ///
    /// # Errors
    /// When no piece is so long.
    pub fn read([a, b, c, d, kind]: [u8; Self::BYTES]) -> Result<Self, LongPiece> {
        let length = u32::from_le_bytes([a, b, c, d]);
        match usize::try_from(length) {
            Ok(length) if length <= PIECE_MAX => Ok(Self { length, kind }),
            _ => Err(LongPiece(length)),
        }
    }
}

/// A piece, and its kind.
pub(super) type Piece = (u8, Bytes);

/// Writes what comes, until nobody has more.
///
/// # Errors
/// When the spare is gone.
pub(super) async fn write_all(
    mut stream: SendStream,
    mut pieces: Receiver<Piece>,
) -> Result<(), StreamFault> {
    while let Some((kind, piece)) = pieces.recv().await {
        let length = piece.len();
        let head = Bytes::copy_from_slice(&PieceHead { length, kind }.to_bytes());
        stream.write_all_chunks(&mut [head, piece]).await?;
    }
    Ok(())
}

/// Reads until nobody wants more, or to the first fault.
pub(super) async fn read_all(mut stream: RecvStream, pieces: Sender<Result<Piece, StreamFault>>) {
    loop {
        let piece = read(&mut stream).await;
        let is_last = piece.is_err();
        if pieces.send(piece).await.is_err() || is_last {
            return;
        }
    }
}

async fn read(stream: &mut RecvStream) -> Result<Piece, StreamFault> {
    let mut head = [0; PieceHead::BYTES];
    stream.read_exact(&mut head).await?;
    let head = PieceHead::read(head).map_err(|error| StreamFault::Said(error.to_string()))?;
    let mut piece = BytesMut::with_capacity(head.length);
    while piece.len() < head.length {
        let chunk = stream.read_chunk(head.length - piece.len(), true).await?;
        piece.extend_from_slice(&chunk.ok_or(StreamFault::Ended)?.bytes);
    }
    Ok((head.kind, piece.freeze()))
}
