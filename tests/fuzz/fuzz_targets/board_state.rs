//! libFuzzer feeds the target `board_state` of `tests/src/fuzz.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lockstep_tests::fuzz::feed("board_state", bytes));
