//! How long a claim takes. Not a test of right or wrong; run it by
//! `cargo test --release -p lockstep-arbiter --test latency -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod common;

use std::time::{Duration, Instant};

use common::{Site, holder, vm};
use lockstep_arbiter::client::ArbiterClient;
use lockstep_arbiter::config::ArbiterConfig;
use lockstep_protocol::ids::Term;
use tempfile::TempDir;

const CLAIMS: u64 = 300;

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_micros();
    println!("{what}: p50 {} us, p90 {} us, p99 {} us", at(50), at(90), at(99));
}

fn claims(client: &ArbiterClient) -> Vec<Duration> {
    let me = holder("a", 1);
    let one = |term| {
        let begun = Instant::now();
        client.claim(&vm(), Term::new(term), &me).unwrap();
        begun.elapsed()
    };
    (0..CLAIMS).map(one).collect()
}

fn reads(client: &ArbiterClient) -> Vec<Duration> {
    let one = |_| {
        let begun = Instant::now();
        client.read(&vm()).unwrap();
        begun.elapsed()
    };
    (0..CLAIMS).map(one).collect()
}

#[test]
#[ignore = "prints a measurement"]
fn of_a_shared_directory() {
    let dir = TempDir::new().unwrap();
    let client = ArbiterClient::open(&ArbiterConfig::File {
        dir: dir.path().to_owned(),
    })
    .unwrap();
    report("file, claim", claims(&client));
    report("file, read", reads(&client));
}

#[test]
#[ignore = "prints a measurement"]
fn of_the_service() {
    let site = Site::new();
    let service = site.serve(0);
    let client = site.client("a", &service);
    report("service, warm, claim", claims(&client));
    report("service, warm, read", reads(&client));
    let cold = (0..50).map(|_| {
        let client = site.client("a", &service);
        let begun = Instant::now();
        client.read(&vm()).unwrap();
        begun.elapsed()
    });
    report("service, fresh connection, read", cold.collect());
}
