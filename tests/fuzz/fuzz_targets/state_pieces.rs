//! libFuzzer feeds the target `state_pieces` of `tests/src/fuzz.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lockstep_tests::fuzz::feed("state_pieces", bytes));
