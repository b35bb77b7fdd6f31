//! What clients ask, what the server answers and what it writes to its disk, with their bytes.

use lockstep_protocol::ids::GuestTime;

use super::super::chain::State;
use super::super::dice::mix;

/// The bytes of a request before its padding.
const HEADER: usize = 8;

/// So many words of a frame are looked at, about.
const SAMPLED: usize = 4096;

/// One request, as it stands in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Who asks.
    pub(crate) client: u8,
    /// The client's own number for it; the same when it asks again.
    pub(crate) seq: u32,
    kind: u8,
    /// What else the frame holds, as a digest.
    rest: u64,
}

/// Bit of a request's kind: its effect shall be on the disk before it is answered.
const KEPT: u8 = 1;
/// Bit of a request's kind: the machine shall be switched off.
const END: u8 = 2;

impl Asked {
    /// The frame of a request with `padding` bytes behind it.
    pub(crate) fn frame(client: u8, seq: u32, kept: bool, end: bool, padding: usize) -> Vec<u8> {
        let mut bytes = vec![seq as u8; HEADER + padding];
        bytes[0] = client;
        bytes[1] = u8::from(kept) * KEPT + u8::from(end) * END;
        bytes[4..HEADER].copy_from_slice(&seq.to_le_bytes());
        bytes
    }

    /// The request in a frame; `None` for any other frame.
    pub(crate) fn read(frame: &[u8]) -> Option<Self> {
        let (header, rest) = frame.split_first_chunk::<HEADER>()?;
        let [client, kind, _, _, seq @ ..] = *header;
        // Of a long frame a sample is enough to tell one from another.
        let step = 1 + rest.len() / SAMPLED;
        let words = rest.chunks(8).step_by(step).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        });
        (usize::from(client) < super::CLIENTS).then(|| Self {
            client,
            kind,
            seq: u32::from_le_bytes(seq),
            rest: words.fold(rest.len() as u64, |sum, word| sum.rotate_left(5) ^ word),
        })
    }

    /// Which client it is, to look it up.
    pub(super) fn client(&self) -> usize {
        usize::from(self.client)
    }

    /// Must its effect be on the disk before it is answered?
    pub(super) fn is_kept(&self) -> bool {
        self.kind & KEPT != 0
    }

    /// Shall the machine be switched off?
    pub(super) fn ends_the_machine(&self) -> bool {
        self.kind & END != 0
    }

    /// All of the request, and when it was executed, as a digest.
    pub(super) fn digest(&self, time: GuestTime) -> u64 {
        let head = u64::from(self.client) << 40 | u64::from(self.kind) << 32 | u64::from(self.seq);
        mix(head ^ self.rest.rotate_left(17)) ^ time.get()
    }
}

/// What a client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// Whom it is for.
    pub(crate) client: u8,
    /// Which request it answers.
    pub(crate) seq: u32,
    /// Was the effect on the disk before?
    pub(crate) kept: bool,
    /// The server right after the request was executed.
    pub(crate) state: State,
}

/// What is in a sector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Block(pub(crate) State);

/// The status byte of a request that went well.
const STATUS_OK: u8 = 0;

impl Block {
    /// What a read of the sector puts into guest memory, the status last.
    pub(crate) fn answer(self) -> [u8; 17] {
        let mut bytes = [STATUS_OK; 17];
        bytes[..8].copy_from_slice(&self.0.count.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.0.digest.to_le_bytes());
        bytes
    }

    /// What a write puts into guest memory.
    pub(crate) fn written() -> [u8; 1] {
        [STATUS_OK]
    }

    /// The sector in the answer to a read.
    pub(super) fn read(answer: &[u8]) -> Option<Self> {
        let [count, digest] = [answer.get(..8)?, answer.get(8..16)?];
        Some(Self(State {
            count: u64::from_le_bytes(count.try_into().ok()?),
            digest: u64::from_le_bytes(digest.try_into().ok()?),
        }))
    }
}
