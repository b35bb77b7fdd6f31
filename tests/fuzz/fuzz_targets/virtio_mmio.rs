//! libFuzzer feeds the target `virtio_mmio` of `tests/src/fuzz.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lockstep_tests::fuzz::feed("virtio_mmio", bytes));
