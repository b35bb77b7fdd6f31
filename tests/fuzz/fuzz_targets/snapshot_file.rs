//! libFuzzer feeds the target `snapshot_file` of `tests/src/fuzz.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lockstep_tests::fuzz::feed("snapshot_file", bytes));
