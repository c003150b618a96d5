//! The two programs that run inside Machines, carried in this file.

/// PID 1 of every Machine.
pub(crate) const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/perch-init"));

/// The quickstart's example app.
pub(crate) const HELLO: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/perch-hello"));
