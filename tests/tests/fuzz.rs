//! Everything that the fuzzer once found worth keeping, in every test run.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

use std::fs;

use lockstep_tests::fuzz::{TARGETS, corpora};

#[test]
fn no_target_falls_over_anything_that_was_kept() {
    for target in TARGETS {
        let folder = corpora().join(target.name);
        let files: Vec<_> = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{} has no corpus: {error}", target.name))
            .map(|file| file.unwrap().path())
            .collect();
        assert!(files.len() >= 3, "the corpus of {} is empty", target.name);
        for file in files {
            println!("{}", file.display());
            (target.run)(&fs::read(file).unwrap());
        }
    }
}

#[test]
fn no_target_falls_over_nothing_at_all_or_a_single_byte() {
    for target in TARGETS {
        (target.run)(&[]);
        (0..=255).for_each(|byte| (target.run)(&[byte]));
    }
}
