//! libFuzzer feeds the target `device_state` of `tests/src/fuzz.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lockstep_tests::fuzz::feed("device_state", bytes));
