//! The HTTP API of Perch: what travels, who serves it, who calls it.
//!
//! The contract is flyctl's: `/v1` Machines, `/api/v1` organizations, releases and logs, `/v2`
//! image pushes. What flyctl does only by GraphQL has a REST twin here. [`wire`] holds the types on
//! the wire, [`server`] turns HTTP into calls of a [`server::Backend`], [`client`] is the typed
//! caller used by `fly`. This crate decides nothing and keeps nothing: no store, no clock of its
//! own beyond deadlines.

pub mod client;
pub mod console;
mod relay;
pub mod server;
mod tls;
pub mod wire;

pub use client::{Client, ClientError};
pub use relay::relay;
pub use server::{Backend, Peer, serve, serve_tcp};
pub use wire::ApiError;
