//! libFuzzer feeds the target `blk_chain` of `tests/src/fuzz.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lockstep_tests::fuzz::feed("blk_chain", bytes));
