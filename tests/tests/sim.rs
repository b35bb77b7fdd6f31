//! The protocol in simulated worlds: seeds that once failed, a few hundred others, and a small model, in every test
//! run. `cargo xtask sim`, `model` and `mutants-protocol` go further.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

use std::fs;
use std::path::Path;

use lockstep_tests::mutants::PLANTS;
use lockstep_tests::sim::campaign::{self, Until};
use lockstep_tests::sim::{self, model, suite};

/// The first numbers behind the word `seed` at the beginning of each file that was kept.
fn kept_seeds() -> Vec<u64> {
    let files = fs::read_dir(suite::kept_seeds()).unwrap();
    let texts = files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
    let seed = |text: String| {
        text.strip_prefix("seed ")
            .and_then(|rest| rest.lines().next()?.parse().ok())
    };
    texts.map(|text| seed(text).unwrap()).collect()
}

#[test]
fn seeds_that_once_failed_do_not_fail_any_more() {
    let seeds = kept_seeds();
    assert!(!seeds.is_empty());
    let failed: Vec<_> = seeds
        .into_iter()
        .filter_map(|seed| sim::run(seed).violation.map(|violation| (seed, violation)))
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn in_three_hundred_worlds_hosts_take_over_and_nothing_goes_wrong_that_must_not() {
    let findings = campaign::run(1, 300, Until::Done);
    assert!(findings.violations.is_empty(), "{:#?}", findings.violations);
    let tally = findings.tally;
    assert!(
        tally.takeovers > 100
            && tally.survivals > 100
            && tally.halts > 100
            && tally.outputs > 30_000
            && tally.deltas > 1000
            && tally.healed > 10,
        "these worlds were too quiet to show anything: {tally:?}"
    );
}

#[test]
fn a_seed_is_the_same_story_on_any_number_of_threads() {
    let sum = |threads| {
        let findings = campaign::run_on(threads, 500, 40, Until::Done);
        (findings.events, findings.tally)
    };
    assert_eq!(sum(1), sum(3));
    assert_eq!(sim::tell(7).story, sim::tell(7).story);
}

#[test]
fn nothing_that_can_happen_to_a_short_log_breaks_an_invariant() {
    let explored = model::EVERYDAY.map(model::explore);
    let violations: Vec<_> = explored
        .iter()
        .filter_map(|explored| explored.violation.as_ref())
        .collect();
    assert!(violations.is_empty(), "{violations:#?}");
    let states: u64 = explored.iter().map(|explored| explored.states).sum();
    assert!(
        states > 10_000,
        "only {states} states: the model is not the one that was meant"
    );
}

#[test]
fn every_planted_bug_still_has_its_place_in_the_source() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let lost: Vec<_> = PLANTS.iter().filter_map(|plant| plant.text(root).err()).collect();
    assert!(lost.is_empty(), "{lost:#?}");
}
