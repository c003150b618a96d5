//! HTTP in, calls of a [`Backend`] out.

mod backend;
mod body;

pub use backend::{Backend, BackendFuture, DeleteMachine, MachineTarget, Peer};
pub use body::BodyStream;
