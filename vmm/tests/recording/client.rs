//! The clients of the recorded run: ordinary TCP, some hundred commands, single, pipelined, with large values, and on
//! connections that take turns. The last one switches the guest off.

use super::host::StopOnPanic;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// A value that can be found in the log.
pub(crate) const MARKED: &[u8] = b"the value that one test changes by one bit";

const GUEST: ([u8; 4], u16) = ([10, 77, 0, 2], 6379);
const PATIENCE: Duration = Duration::from_secs(20);
/// Larger than the window of a connection, so that it comes in many frames.
const BULK_BYTES: usize = 200_000;

/// Asks everything and returns how many commands were answered.
pub(super) fn ask_everything(_guard: &StopOnPanic) -> usize {
    let (mut one, mut other) = (Client::connect(), Client::connect());
    for number in 0..150 {
        let (key, value) = (format!("key:{number}"), format!("value of {number}"));
        one.expect(&["SET", &key, &value], "+OK");
        other.expect(&["GET", &key], &value);
        other.expect(&["INCR", "counter"], &format!(":{}", number + 1));
    }
    one.expect_lengths(
        (0..200).map(|number| ["APPEND".to_owned(), format!("key:{}", number % 10), "x".into()]),
    );
    let bulk = "0123456789abcdef".repeat(BULK_BYTES / 16);
    other.expect(&["SET", "bulk", &bulk], "+OK");
    one.expect(&["GET", "bulk"], &bulk);
    one.expect(
        &["NOSUCHCOMMAND"],
        "-ERR unknown command 'NOSUCHCOMMAND', with args beginning with: ",
    );
    one.send(&encode(&["HASH", "100000000"]));
    (0..20).for_each(|_| other.expect(&["PING"], "+PONG"));
    assert_eq!(one.reply(), hash_of(100_000_000));
    one.expect(&["DEBUG", "HASH", "20000000"], &hash_of(20_000_000));
    other.expect(&["DEL", "bulk", "key:3", "key:4"], ":3");
    one.expect(&["GET", "key:3"], "(nil)");
    // Behind the computing: a delta brings memory as it was recorded, and would put right what a test changes before it.
    one.expect(&["SET", "marked", str::from_utf8(MARKED).unwrap()], "+OK");
    one.expect(&["GET", "marked"], str::from_utf8(MARKED).unwrap());
    let answered = one.answered + other.answered;
    drop(other);
    one.switch_the_guest_off();
    answered
}

struct Client {
    stream: BufReader<TcpStream>,
    answered: usize,
}

impl Client {
    /// Tries until the guest listens.
    fn connect() -> Self {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match TcpStream::connect_timeout(&SocketAddr::from(GUEST), Duration::from_millis(500)) {
                Ok(stream) => {
                    stream.set_nodelay(true).unwrap();
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    return Self {
                        stream: BufReader::new(stream),
                        answered: 0,
                    };
                }
                Err(error) => assert!(Instant::now() < deadline, "the guest does not listen: {error}"),
            }
        }
    }

    fn expect(&mut self, words: &[&str], wanted: &str) {
        self.send(&encode(words));
        assert_eq!(self.reply(), wanted, "for {:.40}", words.join(" "));
    }

    /// Sends all commands at once, then reads all replies, which must be numbers.
    fn expect_lengths(&mut self, commands: impl Iterator<Item = [String; 3]>) {
        let commands: Vec<_> = commands.collect();
        let bytes: Vec<u8> = commands.iter().flat_map(|words| encode(words)).collect();
        self.send(&bytes);
        for words in commands {
            let reply = self.reply();
            assert!(reply.starts_with(':'), "{words:?} gave {reply}");
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream
            .get_mut()
            .write_all(bytes)
            .expect("the guest takes commands");
    }

    /// The next reply as redis-cli would show it: a bulk as its text.
    fn reply(&mut self) -> String {
        let mut line = String::new();
        self.stream
            .read_line(&mut line)
            .expect("the guest answers in time");
        let line = line
            .strip_suffix("\r\n")
            .expect("a reply line ends in CR LF")
            .to_owned();
        self.answered += 1;
        let Some(length) = line.strip_prefix('$') else {
            return line;
        };
        let Ok(length) = length.parse::<usize>() else {
            return "(nil)".into();
        };
        let mut bulk = vec![0; length + 2];
        self.stream
            .read_exact(&mut bulk)
            .expect("the guest sends the whole value");
        bulk.truncate(length);
        String::from_utf8(bulk).expect("the values of this test are text")
    }

    fn switch_the_guest_off(mut self) {
        self.send(&encode(&["SHUTDOWN"]));
        let ended = self
            .stream
            .read(&mut [0])
            .expect("the guest ends the connection in good order");
        assert_eq!(ended, 0, "SHUTDOWN has no reply");
    }
}

/// What the guest's hash of so many rounds comes to (splitmix64).
fn hash_of(rounds: u64) -> String {
    let mix = |number: u64| {
        let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    format!("{:016x}", (0..rounds).fold(0, |hash, _| mix(hash)))
}

fn encode(words: &[impl AsRef<str>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len());
    for word in words.iter().map(AsRef::as_ref) {
        bytes.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    bytes.into_bytes()
}
