//! Claiming processes that are killed at random moments: what was printed stands, and no term has two holders.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{BINARY, granted, holder, vm};
use lockstep_arbiter::store::Store;
use lockstep_arbiter::store::file::FileStore;
use lockstep_protocol::ids::{Holder, Term};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

/// How many times two processes claim the same term and may be killed at it.
const ROUNDS: u64 = 300;
/// Of so many claims that nobody disturbs, the fastest says when a kill comes in time.
const SAMPLES: u64 = 10;

fn start_claim(dir: &Path, expected: Term, me: &Holder) -> Child {
    Command::new(BINARY)
        .arg("claim")
        .arg(dir)
        .arg("shop")
        .args(["--expected", &expected.to_string()])
        .args(["--node", me.node.as_str()])
        .args(["--incarnation", &me.incarnation.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Whether it had printed a grant by the time it ended.
fn printed_a_grant(child: Child) -> bool {
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .starts_with("granted term")
}

/// How long a claiming process lives here if nobody kills it.
fn life_of_a_claim() -> Duration {
    let dir = TempDir::new().unwrap();
    let lives = (0..SAMPLES).map(|term| {
        let begun = Instant::now();
        assert!(printed_a_grant(start_claim(
            dir.path(),
            Term::new(term),
            &holder("a", 1)
        )));
        begun.elapsed()
    });
    lives.min().unwrap()
}

#[test]
fn claimants_killed_at_random_moments_never_share_a_term_and_printed_grants_stand() {
    let dir = TempDir::new().unwrap();
    let store = FileStore::open(dir.path()).unwrap();
    let mut chance = SmallRng::seed_from_u64(7);
    let mut printed = BTreeMap::new();
    let mut killed_in_time = 0;
    let mut life = Duration::ZERO;
    for round in 0..ROUNDS {
        // A machine that others use as well is not always as fast.
        if round.is_multiple_of(ROUNDS / 10) {
            life = life_of_a_claim();
        }
        let expected = store
            .read(&vm())
            .unwrap()
            .map_or(Term::ZERO, |tenure| tenure.term);
        let claimants = [holder("a", u128::from(round)), holder("b", u128::from(round))];
        let mut children = claimants
            .each_ref()
            .map(|me| start_claim(dir.path(), expected, me));
        for child in &mut children {
            thread::sleep(life.mul_f64(chance.random_range(0.0..0.8)));
            child.kill().unwrap();
        }
        let grants: Vec<_> = children
            .into_iter()
            .zip(claimants)
            .filter_map(|(child, me)| printed_a_grant(child).then_some(me))
            .collect();
        assert!(
            grants.len() <= 1,
            "round {round}: {grants:?} both have the term after {expected}"
        );
        killed_in_time += u64::from(grants.is_empty());
        printed.extend(grants.into_iter().map(|me| (expected.next(), me)));
    }

    let history = store.history(&vm()).unwrap();
    let register: BTreeMap<_, _> = history
        .into_iter()
        .map(|tenure| (tenure.term, tenure.holder))
        .collect();
    for (term, me) in &printed {
        assert_eq!(register.get(term), Some(me));
    }
    // The kills came early and late: otherwise this test shows nothing.
    assert!(
        (ROUNDS / 10..ROUNDS).contains(&killed_in_time),
        "{killed_in_time} of {ROUNDS} without a grant"
    );
    // What the killed ones left harms nobody.
    let newest = store
        .read(&vm())
        .unwrap()
        .map_or(Term::ZERO, |tenure| tenure.term);
    assert_eq!(
        store.claim(&vm(), newest, &holder("c", 0)).unwrap(),
        granted(newest.get() + 1)
    );
}

#[test]
fn processes_that_race_for_the_same_terms_share_none() {
    let dir = TempDir::new().unwrap();
    for expected in 0..20 {
        let expected = Term::new(expected);
        let claimants = ["a", "b", "c", "d"].map(|node| start_claim(dir.path(), expected, &holder(node, 1)));
        let grants = claimants.map(|child| u8::from(printed_a_grant(child)));
        assert_eq!(grants.iter().sum::<u8>(), 1, "the term after {expected}");
    }
}
