//! libFuzzer feeds the target `staging_rings` of `tests/src/fuzz.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lockstep_tests::fuzz::feed("staging_rings", bytes));
