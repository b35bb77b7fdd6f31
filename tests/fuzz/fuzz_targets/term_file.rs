//! libFuzzer feeds the target `term_file` of `tests/src/fuzz.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lockstep_tests::fuzz::feed("term_file", bytes));
