//! See `perch_proxy::fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| perch_proxy::fuzz::run("websocket", input));
