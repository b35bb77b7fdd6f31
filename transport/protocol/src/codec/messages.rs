//! Messages on the control, ack and heartbeat streams: one byte of kind, two of length, the body. The body of
//! a hello begins alike in every version, so that a stranger can still be told what is wrong.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Reader, Unread};
use crate::ids::{LogOffset, NodeName, Position, Term};
use crate::limits::{CENSUS_PAGES, MAX_MESSAGE, MAX_RELEASE, PROTOCOL_VERSION};
use crate::message::{
    Ack, Census, Digest, Diverged, Foreign, Heartbeat, Hello, Image, Message, Role, Sentence,
};
use crate::session::{Parting, Timing};
use crate::time::{Duration, Instant};

/// What a peer's messages cannot contain. The session ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageFault {
    /// No such message.
    #[error("A message of unknown kind {0:#04x}")]
    UnknownKind(u8),
    /// Longer than any message may be.
    #[error("A message of {0} bytes, at most {MAX_MESSAGE} are allowed")]
    TooLong(usize),
    /// Its body is not what its kind asks for.
    #[error("A malformed message of kind {0:#04x}")]
    Malformed(u8),
}

const HELLO: u8 = 1;
const REFUSED: u8 = 2;
const GOODBYE: u8 = 3;
const ACK: u8 = 4;
const HEARTBEAT: u8 = 5;
const DIVERGED: u8 = 6;
const CENSUS: u8 = 7;
/// Kind and length.
const HEAD: usize = 3;

/// Appends one message to `out`. A release name that is too long is our bug, and panics.
pub fn encode_message(out: &mut BytesMut, message: &Message) {
    let begin = out.len();
    let kind = match message {
        Message::Hello(_) | Message::Foreign(_) => HELLO,
        Message::Refused(_) => REFUSED,
        Message::Goodbye(_) => GOODBYE,
        Message::Ack(_) => ACK,
        Message::Heartbeat(_) => HEARTBEAT,
        Message::Diverged(_) => DIVERGED,
        Message::Census(_) => CENSUS,
    };
    out.put_u8(kind);
    out.put_u16_le(0);
    put_body(out, message);
    let body = out.len() - begin - HEAD;
    assert!(HEAD + body <= MAX_MESSAGE, "every message fits the limit");
    let length = u16::try_from(body).expect("the limit fits 16 bits");
    out[begin + 1..begin + HEAD].copy_from_slice(&length.to_le_bytes());
}

fn put_body(out: &mut BytesMut, message: &Message) {
    match message {
        Message::Hello(hello) => put_hello(out, hello),
        Message::Foreign(foreign) => put_greeting(out, foreign.version, &foreign.release, &foreign.node),
        Message::Refused(sentence) => out.put_slice(sentence.as_str().as_bytes()),
        Message::Goodbye(why) => out.put_u8(match why {
            Parting::PowerOff => 1,
            Parting::Stopped => 2,
            Parting::Failed => 3,
            Parting::DiskFailed => 4,
            Parting::DeviceFailed => 5,
        }),
        Message::Ack(ack) => {
            out.put_u64_le(ack.term.get());
            out.put_u64_le(ack.upto.get());
            out.put_u64_le(ack.executed.get());
            out.put_u64_le(ack.position.get());
        }
        Message::Heartbeat(beat) => {
            out.put_u64_le(beat.term.get());
            out.put_u64_le(beat.sent_at.as_nanos());
            if let Some(echo) = beat.echo {
                out.put_u64_le(echo.as_nanos());
            }
        }
        Message::Diverged(found) => {
            out.put_u64_le(found.term.get());
            out.put_u64_le(found.position.get());
            out.put_slice(found.what.as_str().as_bytes());
        }
        Message::Census(census) => {
            assert!(
                census.hashes.len() <= CENSUS_PAGES,
                "a piece of a census fits a message"
            );
            out.put_u64_le(census.term.get());
            out.put_u64_le(census.first);
            out.put_u8(u8::from(census.is_last));
            census.hashes.iter().for_each(|hash| out.put_u64_le(*hash));
        }
    }
}

fn put_greeting(out: &mut BytesMut, version: u16, release: &str, node: &NodeName) {
    assert!(release.len() <= MAX_RELEASE, "a release name fits a hello");
    out.put_u16_le(version);
    put_word(out, release);
    put_word(out, node.as_str());
}

fn put_word(out: &mut BytesMut, word: &str) {
    out.put_u8(u8::try_from(word.len()).expect("words in messages are shorter than 256 bytes"));
    out.put_slice(word.as_bytes());
}

fn put_hello(out: &mut BytesMut, hello: &Hello) {
    put_greeting(out, hello.version, &hello.release, &hello.node);
    out.put_u8(match hello.role {
        Role::Primary => 1,
        Role::Backup => 2,
    });
    out.put_u64_le(hello.term.get());
    out.put_u64_le(hello.start.get());
    for digest in [&hello.config, &hello.template, &hello.devices] {
        out.put_slice(digest.as_bytes());
    }
    match &hello.image {
        None => out.put_u8(0),
        Some(image) => {
            out.put_u8(1);
            out.put_slice(image.digest.as_bytes());
            put_word(out, image.last_holder.as_ref().map_or("", NodeName::as_str));
        }
    }
    for duration in [hello.timing.heartbeat, hello.timing.timeout, hello.timing.lease] {
        out.put_u64_le(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }
}

/// Turns the bytes of one stream back into messages, from pieces of any size.
#[derive(Debug, Default)]
pub struct MessageDecoder {
    partial: Vec<u8>,
}

impl MessageDecoder {
    /// At the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next whole message. Takes bytes from the front of `chunk`; gives `None` once it has taken them all.
    pub fn decode(&mut self, chunk: &mut Bytes) -> Result<Option<Message>, MessageFault> {
        self.fill(chunk, HEAD);
        let Some((&[kind, low, high], _)) = self.partial.split_first_chunk::<HEAD>() else {
            return Ok(None);
        };
        // The head is judged as soon as it is here: no waiting for the body of what is never taken.
        if !(HELLO..=CENSUS).contains(&kind) {
            return Err(MessageFault::UnknownKind(kind));
        }
        let whole = HEAD + usize::from(u16::from_le_bytes([low, high]));
        if whole > MAX_MESSAGE {
            return Err(MessageFault::TooLong(whole));
        }
        self.fill(chunk, whole);
        if self.partial.len() < whole {
            return Ok(None);
        }
        let message = parse_body(kind, &self.partial[HEAD..]).map_err(|_| MessageFault::Malformed(kind))?;
        self.partial.clear();
        Ok(Some(message))
    }

    /// Moves bytes over until there are `wanted`, or `chunk` is empty.
    fn fill(&mut self, chunk: &mut Bytes, wanted: usize) {
        let more = wanted.saturating_sub(self.partial.len()).min(chunk.len());
        self.partial.extend_from_slice(&chunk[..more]);
        chunk.advance(more);
    }
}

fn parse_body(kind: u8, body: &[u8]) -> Result<Message, Unread> {
    let mut from = Reader { rest: body };
    let message = match kind {
        HELLO => parse_hello(&mut from)?,
        REFUSED => Message::Refused(parse_sentence(&mut from)?),
        GOODBYE => Message::Goodbye(parse_parting(from.u8()?)?),
        ACK => Message::Ack(Ack {
            term: Term::new(from.u64()?),
            upto: LogOffset::new(from.u64()?),
            executed: LogOffset::new(from.u64()?),
            position: Position::new(from.u64()?),
        }),
        DIVERGED => Message::Diverged(Diverged {
            term: Term::new(from.u64()?),
            position: Position::new(from.u64()?),
            what: parse_sentence(&mut from)?,
        }),
        CENSUS => Message::Census(parse_census(&mut from)?),
        _ => Message::Heartbeat(Heartbeat {
            term: Term::new(from.u64()?),
            sent_at: Instant::from_nanos(from.u64()?),
            echo: if from.rest.is_empty() {
                None
            } else {
                Some(Instant::from_nanos(from.u64()?))
            },
        }),
    };
    // Bytes that nobody asked for are as wrong as missing ones; only a stranger's hello may have more.
    let foreign = matches!(message, Message::Foreign(_));
    if from.rest.is_empty() || foreign {
        Ok(message)
    } else {
        Err(Unread::Malformed)
    }
}

fn parse_sentence(from: &mut Reader<'_>) -> Result<Sentence, Unread> {
    let text = std::str::from_utf8(from.take(from.rest.len())?).map_err(|_| Unread::Malformed)?;
    Ok(Sentence::new(text))
}

fn parse_census(from: &mut Reader<'_>) -> Result<Census, Unread> {
    let (term, first) = (Term::new(from.u64()?), from.u64()?);
    let is_last = match from.u8()? {
        0 => false,
        1 => true,
        _ => return Err(Unread::Malformed),
    };
    let mut hashes = Vec::with_capacity(from.rest.len() / 8);
    while !from.rest.is_empty() {
        hashes.push(from.u64()?);
    }
    Ok(Census {
        term,
        first,
        is_last,
        hashes,
    })
}

fn parse_hello(from: &mut Reader<'_>) -> Result<Message, Unread> {
    let version = from.u16()?;
    let release = Sentence::new(parse_word(from, MAX_RELEASE)?).to_string();
    let node = NodeName::new(parse_word(from, usize::MAX)?).map_err(|_| Unread::Malformed)?;
    if version != PROTOCOL_VERSION {
        return Ok(Message::Foreign(Foreign {
            version,
            release,
            node,
        }));
    }
    let role = match from.u8()? {
        1 => Role::Primary,
        2 => Role::Backup,
        _ => return Err(Unread::Malformed),
    };
    Ok(Message::Hello(Box::new(Hello {
        version,
        release,
        node,
        role,
        term: Term::new(from.u64()?),
        start: LogOffset::new(from.u64()?),
        config: Digest::new(from.array()?),
        template: Digest::new(from.array()?),
        devices: Digest::new(from.array()?),
        image: parse_image(from)?,
        timing: Timing {
            heartbeat: Duration::from_nanos(from.u64()?),
            timeout: Duration::from_nanos(from.u64()?),
            lease: Duration::from_nanos(from.u64()?),
        },
    })))
}

fn parse_image(from: &mut Reader<'_>) -> Result<Option<Image>, Unread> {
    match from.u8()? {
        0 => Ok(None),
        1 => {
            let digest = Digest::new(from.array()?);
            let last_holder = match parse_word(from, usize::MAX)? {
                "" => None,
                name => Some(NodeName::new(name).map_err(|_| Unread::Malformed)?),
            };
            Ok(Some(Image { digest, last_holder }))
        }
        _ => Err(Unread::Malformed),
    }
}

fn parse_word<'a>(from: &mut Reader<'a>, limit: usize) -> Result<&'a str, Unread> {
    let length = usize::from(from.u8()?);
    if length > limit {
        return Err(Unread::Malformed);
    }
    std::str::from_utf8(from.take(length)?).map_err(|_| Unread::Malformed)
}

fn parse_parting(byte: u8) -> Result<Parting, Unread> {
    match byte {
        1 => Ok(Parting::PowerOff),
        2 => Ok(Parting::Stopped),
        3 => Ok(Parting::Failed),
        4 => Ok(Parting::DiskFailed),
        5 => Ok(Parting::DeviceFailed),
        _ => Err(Unread::Malformed),
    }
}
