//! RESP, the protocol of the guest's server: commands out, replies in, over one TCP connection. Everything that comes
//! in is bounded; a server that talks nonsense is an error, never a hang or a growing buffer.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use backon::{ConstantBuilder, Retryable};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long to wait before asking a server again that refused a connection, and how often: two seconds in all.
const REFUSED_PAUSE: Duration = Duration::from_millis(2);
const REFUSED_TIMES: usize = 1000;

/// The words of one command.
pub(crate) type Words = Vec<Vec<u8>>;

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Simple(Vec<u8>),
    Error(Vec<u8>),
    Integer(i64),
    Bulk(Option<Vec<u8>>),
    Array(Vec<Reply>),
}

/// Why bytes are not a reply.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum BadReply {
    #[error("A reply starts with byte {0:#04x}, which is no RESP type")]
    Type(u8),
    #[error("A reply has a number or a length that is none, or beyond all bounds")]
    Number,
    #[error("A reply does not end in CR LF where it must")]
    Ending,
    #[error("A reply is nested too deep")]
    Depth,
}

/// One TCP connection to the server.
pub(crate) struct Connection {
    stream: TcpStream,
    out: Vec<u8>,
    incoming: Vec<u8>,
    /// How much of `incoming` was taken already.
    taken: usize,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            out: Vec::new(),
            incoming: Vec::new(),
            taken: 0,
        })
    }

    /// The same for a server that has only so many connections, and may not have seen yet that earlier ones are over: one that
    /// refuses is asked again for a while.
    pub(crate) async fn open_once_free(address: SocketAddr) -> io::Result<Self> {
        let pauses = ConstantBuilder::new()
            .with_delay(REFUSED_PAUSE)
            .with_max_times(REFUSED_TIMES);
        (|| Self::open(address))
            .retry(pauses)
            .when(|error| error.kind() == io::ErrorKind::ConnectionRefused)
            .await
    }

    /// Sends all commands in one go.
    pub(crate) async fn ask(&mut self, commands: &[Words]) -> io::Result<()> {
        self.out.clear();
        for words in commands {
            encode(words, &mut self.out);
        }
        self.stream.write_all(&self.out).await
    }

    /// Sends commands that were [encoded](encode) before.
    pub(crate) async fn send(&mut self, encoded: &[u8]) -> io::Result<()> {
        self.stream.write_all(encoded).await
    }

    /// Takes as many bytes as `right` has; whether they are these. Cheaper than to understand each reply.
    pub(crate) async fn is_answered(&mut self, right: &[u8]) -> io::Result<bool> {
        while self.incoming.len() - self.taken < right.len() {
            self.read_more().await?;
        }
        let start = self.taken;
        self.taken += right.len();
        Ok(self.incoming[start..self.taken] == *right)
    }

    /// The next reply.
    pub(crate) async fn reply(&mut self) -> io::Result<Reply> {
        loop {
            let waiting = &self.incoming[self.taken..];
            match parse(waiting, 0).map_err(|bad| io::Error::new(io::ErrorKind::InvalidData, bad))? {
                Some((reply, used)) => {
                    self.taken += used;
                    return Ok(reply);
                }
                None => self.read_more().await?,
            }
        }
    }

    async fn read_more(&mut self) -> io::Result<()> {
        self.incoming.drain(..self.taken);
        self.taken = 0;
        self.incoming.reserve(READ_SIZE);
        match self.stream.read_buf(&mut self.incoming).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// Appends one command.
pub(crate) fn encode(words: &[Vec<u8>], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// The first reply of `bytes` and its size, or nothing if it is not complete yet.
fn parse(bytes: &[u8], depth: usize) -> Result<Option<(Reply, usize)>, BadReply> {
    if depth > DEPTH_MAX {
        return Err(BadReply::Depth);
    }
    let Some((line, start)) = line(bytes)? else {
        return Ok(None);
    };
    let reply = match line[0] {
        b'+' => Reply::Simple(line[1..].to_vec()),
        b'-' => Reply::Error(line[1..].to_vec()),
        b':' => Reply::Integer(number(&line[1..])?),
        b'$' => return bulk(bytes, number(&line[1..])?, start),
        b'*' => return array(bytes, number(&line[1..])?, start, depth),
        other => return Err(BadReply::Type(other)),
    };
    Ok(Some((reply, start)))
}

fn bulk(bytes: &[u8], size: i64, start: usize) -> Result<Option<(Reply, usize)>, BadReply> {
    if size == -1 {
        return Ok(Some((Reply::Bulk(None), start)));
    }
    let size = usize::try_from(size)
        .ok()
        .filter(|size| *size <= BULK_MAX)
        .ok_or(BadReply::Number)?;
    let end = start + size;
    let Some(ending) = bytes.get(end..end + 2) else {
        return Ok(None);
    };
    if ending != b"\r\n" {
        return Err(BadReply::Ending);
    }
    Ok(Some((Reply::Bulk(Some(bytes[start..end].to_vec())), end + 2)))
}

fn array(bytes: &[u8], count: i64, start: usize, depth: usize) -> Result<Option<(Reply, usize)>, BadReply> {
    let count = usize::try_from(count)
        .ok()
        .filter(|count| *count <= ARRAY_MAX)
        .ok_or(BadReply::Number)?;
    let mut items = Vec::new();
    let mut at = start;
    for _ in 0..count {
        let Some((item, used)) = parse(&bytes[at..], depth + 1)? else {
            return Ok(None);
        };
        items.push(item);
        at += used;
    }
    Ok(Some((Reply::Array(items), at)))
}

/// The first line without its end, and where the next one starts. Never empty.
fn line(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, BadReply> {
    match bytes.iter().position(|byte| *byte == b'\n') {
        None if bytes.len() > LINE_MAX => Err(BadReply::Ending),
        None => Ok(None),
        Some(at) if at >= 2 && bytes[at - 1] == b'\r' => Ok(Some((&bytes[..at - 1], at + 1))),
        Some(_) => Err(BadReply::Ending),
    }
}

fn number(digits: &[u8]) -> Result<i64, BadReply> {
    std::str::from_utf8(digits)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(BadReply::Number)
}

const READ_SIZE: usize = 64 * 1024;
const LINE_MAX: usize = 4096;
/// Above the largest value that the demo or the bench ever writes.
const BULK_MAX: usize = 8 << 20;
const ARRAY_MAX: usize = 100_000;
const DEPTH_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8]) -> Reply {
        let (reply, used) = parse(bytes, 0).unwrap().unwrap();
        assert_eq!(used, bytes.len());
        reply
    }

    #[tokio::test]
    async fn a_server_that_refuses_at_first_is_asked_again() {
        let address = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .unwrap();
        let refused = Connection::open(address).await.err().map(|error| error.kind());
        assert_eq!(refused, Some(io::ErrorKind::ConnectionRefused));

        let mut asking = Box::pin(Connection::open_once_free(address));
        // It has been refused once when this comes back without an end.
        let first = tokio::time::timeout(REFUSED_PAUSE / 2, &mut asking).await;
        assert!(first.is_err());
        let _listener = std::net::TcpListener::bind(address).unwrap();
        assert!(asking.await.is_ok());
    }

    #[test]
    fn every_kind_of_reply_is_understood() {
        assert_eq!(whole(b"+OK\r\n"), Reply::Simple(b"OK".to_vec()));
        assert_eq!(whole(b"-ERR no\r\n"), Reply::Error(b"ERR no".to_vec()));
        assert_eq!(whole(b":-7\r\n"), Reply::Integer(-7));
        assert_eq!(whole(b"$-1\r\n"), Reply::Bulk(None));
        assert_eq!(whole(b"$0\r\n\r\n"), Reply::Bulk(Some(Vec::new())));
        assert_eq!(whole(b"*2\r\n:1\r\n$2\r\n\r\n\r\n").clone(), {
            Reply::Array(vec![Reply::Integer(1), Reply::Bulk(Some(b"\r\n".to_vec()))])
        });
    }

    #[test]
    fn a_reply_cut_anywhere_waits_for_the_rest() {
        let bytes = b"*2\r\n:12\r\n$5\r\nhello\r\n";
        assert!((0..bytes.len()).all(|cut| parse(&bytes[..cut], 0) == Ok(None)));
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(parse(b"hello\r\n", 0), Err(BadReply::Type(b'h')));
        assert_eq!(parse(b"$99999999999\r\n", 0), Err(BadReply::Number));
        assert_eq!(parse(b"$1\r\nabc", 0), Err(BadReply::Ending));
        assert_eq!(
            parse(b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n", 0),
            Err(BadReply::Depth)
        );
        assert_eq!(parse(b"\r\n", 0), Err(BadReply::Ending));
    }

    #[test]
    fn a_command_is_an_array_of_its_words() {
        let mut out = Vec::new();
        encode(&[b"GET".to_vec(), b"k".to_vec()], &mut out);
        assert_eq!(out, b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
    }
}
