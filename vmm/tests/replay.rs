//! Record and replay on this machine's KVM: a run of the micro guest under real clients, with its real device processes,
//! is recorded; a second machine that has nothing but the log ends at the same position with the same registers and the
//! same memory, page by page.
//!
//! The record goes through the real codec. Without KVM, or without the right to make a network namespace, these tests
//! fail with a sentence that says so.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod copies;
mod recording;

use lockstep_protocol::ids::{GuestTime, Position};
use lockstep_protocol::record::{Input, Record};
use lockstep_vmm::machine::{End, MachineDigest};
use recording::{Outcome, Recording, replay};

/// The page that shows the guest's clock, by its number.
const CLOCK_PAGE: usize = 2;

#[test]
fn a_replay_of_the_log_ends_as_the_recorded_machine() {
    recording::with("a_replay_of_the_log_ends_as_the_recorded_machine", |recording| {
        recording.assert_it_is_worth_replaying();

        let replayed = replay(recording, recording.records()).expect("the log fits its own machine");

        assert_eq!(replayed.end, End::PowerOff);
        assert_same(&recording.outcome, &replayed);
    });
}

#[test]
fn a_log_can_be_replayed_again_and_again() {
    recording::with("a_log_can_be_replayed_again_and_again", |recording| {
        let first = replay(recording, recording.records()).expect("the log fits its own machine");
        let second = replay(recording, recording.records()).expect("the log fits its own machine");

        assert_same(&first, &second);
    });
}

#[test]
fn what_an_output_needs_includes_a_digest_of_the_machine_that_made_it() {
    recording::with(
        "what_an_output_needs_includes_a_digest_of_the_machine_that_made_it",
        |recording| {
            let mut records = recording.records();
            let is_end = |mark: &Record| mark.position == recording.outcome.position;
            let bare = records.windows(2).find(|pair| {
                let [before, mark] = pair else { return false };
                let compared =
                    matches!(before.input, Input::Digest { .. }) && before.position == mark.position;
                matches!(mark.input, Input::Mark) && !is_end(mark) && !compared
            });
            assert_eq!(bare, None);

            // And it is compared: with another one the replay does not get past it.
            let digest = records
                .iter_mut()
                .find(|record| matches!(record.input, Input::Digest { .. }))
                .expect("some output was made");
            flip(digest, 0);
            assert!(replay(recording, records).is_err());
        },
    );
}

#[test]
fn one_flipped_bit_of_a_received_value_shows_in_the_end() {
    recording::with(
        "one_flipped_bit_of_a_received_value_shows_in_the_end",
        |recording| {
            let mut records = recording.records();
            let (record, at) = find_marked_value(&records);
            flip(&mut records[record], at);

            // Whether the guest takes the value or refuses the frame depends on checksum offload; either way it shows.
            let replayed = replay(recording, records);

            assert_ne!(replayed.as_ref(), Ok(&recording.outcome));
        },
    );
}

#[test]
fn the_last_tick_one_nanosecond_off_shows_in_the_clock_page() {
    recording::with(
        "the_last_tick_one_nanosecond_off_shows_in_the_clock_page",
        |recording| {
            let mut records = recording.records();
            let tick = records
                .iter_mut()
                .rev()
                .find_map(|record| match &mut record.input {
                    Input::Tick { time } => Some(time),
                    _ => None,
                });
            let tick = tick.expect("every recording has ticks");
            *tick = GuestTime::new(tick.get() + 1);

            let replayed =
                replay(recording, records).expect("a nanosecond changes nothing that the guest does");

            assert_eq!(replayed.position, recording.outcome.position);
            assert!(pages_that_differ(&recording.outcome.digest, &replayed.digest).contains(&CLOCK_PAGE));
        },
    );
}

#[test]
fn a_log_without_its_last_record_ends_earlier() {
    recording::with("a_log_without_its_last_record_ends_earlier", |recording| {
        let mut records = recording.records();
        records.pop();

        let replayed = replay(recording, records);

        assert_eq!(replayed.unwrap_err(), "The log ended before the guest did");
    });
}

fn assert_same(ours: &Outcome, theirs: &Outcome) {
    assert_eq!(
        ours.position, theirs.position,
        "they stopped at different positions"
    );
    assert_eq!(
        String::from_utf8_lossy(&ours.console),
        String::from_utf8_lossy(&theirs.console)
    );
    assert_eq!(
        ours.digest.pages.len(),
        theirs.digest.pages.len(),
        "they have different amounts of memory"
    );
    let different = pages_that_differ(&ours.digest, &theirs.digest);
    assert!(
        different.is_empty(),
        "{} pages differ, the first at {:#x}",
        different.len(),
        different[0] * 4096
    );
    assert_eq!(
        ours.digest.registers, theirs.digest.registers,
        "only the registers differ"
    );
}

fn pages_that_differ(ours: &MachineDigest, theirs: &MachineDigest) -> Vec<usize> {
    let pages = ours.pages.iter().zip(&theirs.pages).enumerate();
    pages
        .filter(|(_, (ours, theirs))| ours != theirs)
        .map(|(number, _)| number)
        .collect()
}

/// Which record carries the value that the client marked, and where the mark begins in its bytes.
fn find_marked_value(records: &[Record]) -> (usize, usize) {
    let found = records
        .iter()
        .enumerate()
        .find_map(|(number, record)| match &record.input {
            Input::Frame { bytes, .. } => bytes
                .windows(recording::MARKED.len())
                .position(|window| window == recording::MARKED)
                .map(|at| (number, at)),
            _ => None,
        });
    found.expect("the client sent the marked value in one frame")
}

fn flip(record: &mut Record, at: usize) {
    assert!(record.position > Position::ZERO);
    let (Input::Frame { bytes, .. } | Input::Digest { bytes }) = &mut record.input else {
        panic!("only frames and digests have bytes to flip")
    };
    let mut changed = bytes.to_vec();
    changed[at] ^= 1;
    *bytes = changed.into();
}

impl Recording {
    /// A recording in which nothing happened would prove nothing.
    fn assert_it_is_worth_replaying(&self) {
        let count = |kind: &str| {
            self.records()
                .iter()
                .filter(|record| record.input.kind() == kind)
                .count()
        };
        assert_eq!(count("power-on"), 1);
        assert!(self.operations >= 500, "only {} operations", self.operations);
        for (kind, least) in [
            ("frame", 200),
            ("completion", 50),
            ("returned", 20),
            ("tick", 100),
            ("mark", 100),
        ] {
            assert!(count(kind) >= least, "only {} records are a {kind}", count(kind));
        }
        assert!(self.deltas >= 20, "only {} deltas", self.deltas);
        println!(
            "{} deltas, {} operations, {} positions, {} records in {} bytes",
            self.deltas,
            self.operations,
            self.outcome.position,
            self.records().len(),
            self.log.len()
        );
    }
}
