//! A guest that computes for seconds without a single exit is protected like any other: its clock goes on, its inputs
//! enter, and what it has computed so far outlives its host.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use lockstep_tests::network::{self, GUEST};
use lockstep_tests::pair::{Node, Pair, plug};

/// How long a client may wait for its answer while the guest computes.
const ANSWER_MAX: Duration = Duration::from_millis(50);
/// How far the guest's clock may be off the host's meanwhile.
const CLOCK_OFF_MAX: Duration = Duration::from_millis(20);
/// Some seconds of work.
const ROUNDS: u64 = 500_000_000;
/// Looks at a clock are so far apart.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);
/// Many times what it takes until nobody looks any more whether an idle guest computes.
const PAUSE: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_guest_that_computes_keeps_its_clock_and_answers_others_and_outlives_its_host() {
    network::alone(
        "a_guest_that_computes_keeps_its_clock_and_answers_others_and_outlives_its_host",
        || {
            let pair = Pair::new().unwrap();
            let (mut a, mut b) = start_patient(&pair);
            let mut other = Client::connect();
            let mut one = Client::connect();
            one.ask(&format!("HASH {ROUNDS}"));

            let off = clock_off(&a, 50);
            let answered = answers(&mut other, 50);
            let status = a.status().unwrap();
            a.kill();
            b.wait_until_role("alone").unwrap();

            let answer = one.answer();
            println!(
                "clock off by {off:?}, answers in {answered:?}, {} deltas of {} bytes",
                status["deltas"], status["delta_bytes"]
            );
            assert_eq!(answer, hash_of(ROUNDS));
            assert!(off < CLOCK_OFF_MAX, "the guest's clock was {off:?} off");
            assert!(answered < ANSWER_MAX, "answers took {answered:?}");
            assert!(status["deltas"].as_u64().unwrap() > 20, "{status:#}");
            assert_eq!(other.say("PING"), "+PONG");
        },
    );
}

#[test]
fn a_guest_that_looks_at_nothing_while_it_computes_is_stopped_and_copied_all_the_same() {
    network::alone(
        "a_guest_that_looks_at_nothing_while_it_computes_is_stopped_and_copied_all_the_same",
        || {
            let pair = Pair::new().unwrap();
            let (mut a, mut b) = start_patient(&pair);
            let mut one = Client::connect();
            one.ask(&format!("DEBUG HASH {ROUNDS}"));

            let off = clock_off(&a, 50);
            let before = a.status().unwrap();
            a.kill();
            b.wait_until_role("alone").unwrap();

            assert!(off < CLOCK_OFF_MAX, "the guest's clock was {off:?} off");
            assert!(before["deltas"].as_u64().unwrap() > 20, "{before:#}");
            assert_eq!(one.answer(), hash_of(ROUNDS));

            // The survivor's guest has nothing to do for a while, then computes again.
            std::thread::sleep(PAUSE);
            one.ask(&format!("DEBUG HASH {ROUNDS}"));
            let off = clock_off(&b, 50);
            assert!(off < CLOCK_OFF_MAX, "the survivor's clock was {off:?} off");
            assert_eq!(one.answer(), hash_of(ROUNDS));
        },
    );
}

/// Starts both nodes with a timing in which a busy machine is not taken for a dead host.
fn start_patient(pair: &Pair) -> (Node, Node) {
    let patient = "heartbeat_ms = 20\nlease_ms = 800\ntimeout_ms = 1000";
    let config = pair.changed_config("heartbeat_ms = 20", patient).unwrap();
    let mut b = pair.start_with(&config, "b", "backup").unwrap();
    let mut a = pair.start_with(&config, "a", "primary").unwrap();
    a.wait_until_role("primary").unwrap();
    b.wait_until_role("backup").unwrap();
    plug(&["a", "b"]).unwrap();
    (a, b)
}

/// How far the guest's clock runs off the host's in so many looks.
fn clock_off(node: &Node, looks: u32) -> Duration {
    let look = || {
        let before = Instant::now();
        let guest = Duration::from_nanos(node.status().unwrap()["guest_time_ns"].as_u64().unwrap());
        (before, Instant::now(), guest)
    };
    let (_, since, from) = look();
    let late = (0..looks).map(|_| {
        std::thread::sleep(BETWEEN_LOOKS);
        let (before, _, guest) = look();
        // The status is as of some moment after `before`, so the guest is late by this at least.
        (before - since).saturating_sub(guest.saturating_sub(from))
    });
    judged(late)
}

/// What half of them are at most. On a busy machine a host's own threads wait for a processor longer than any limit now and
/// then, and so does the guest; the worst is told.
fn judged(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    println!("{:?} at most", times.last());
    times[times.len() / 2]
}

/// How long a client waits for its answers.
fn answers(client: &mut Client, questions: u32) -> Duration {
    let ask = |client: &mut Client| {
        let asked = Instant::now();
        assert_eq!(client.say("PING"), "+PONG");
        asked.elapsed()
    };
    judged((0..questions).map(|_| ask(client)))
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

/// An ordinary client on one connection.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect() -> Self {
        let stream = TcpStream::connect(GUEST).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    fn ask(&mut self, words: &str) {
        self.0
            .get_mut()
            .write_all(format!("{words}\r\n").as_bytes())
            .unwrap();
    }

    /// A line, or the text of a bulk.
    fn answer(&mut self) -> String {
        let line = self.line();
        match line.starts_with('$') {
            true => self.line(),
            false => line,
        }
    }

    fn say(&mut self, words: &str) -> String {
        self.ask(words);
        self.answer()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}
