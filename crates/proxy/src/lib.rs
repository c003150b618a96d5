//! The data plane's proxy: accepts connections at Flycast and public addresses, finds the app, holds
//! the caller while a Machine wakes, and carries HTTP/1.1, HTTP/2, raw TCP and UDP; it also answers DNS.
//!
//! It is a process of its own without privileges. Everything that needs them is handed to it:
//! listening sockets by [`Handover`], knowledge of apps and starts of Machines over [`control`]. When
//! the server dies the proxy goes on with what it knows; a new server connects and learns the
//! listeners from it. When the proxy dies, connections wait in the listeners, whose copies the server
//! keeps, for the next proxy.
//!
//! It never starts processes, never opens files, and never decides by itself when a Machine starts
//! or sleeps: `perch_core`'s balancer does.

pub mod control;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;

mod app;
mod buffer;
mod clock;
mod convert;
mod crowd;
mod directory;
mod dns;
mod ending;
mod freezer;
mod http;
mod http2;
mod identity;
mod idleness;
mod interning;
mod line;
mod live;
mod moderation;
mod pipe;
mod presence;
mod probe;
mod proxy_header;
mod server;
mod server_side;
mod shares;
mod tcp;
mod udp;
mod upstream;
mod websocket;

use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

pub use control::{Handover, Listeners};

/// Who connected to where, as the kernel says (`getpeername`, `getsockname`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoints {
    /// Address of the caller.
    pub caller: SocketAddr,
    /// Address and port that the caller asked for.
    pub dest: SocketAddr,
}

/// Replaces the endpoints that the kernel reports; tests use it in place of transparent sockets.
pub type RewriteEndpoints = Arc<dyn Fn(Endpoints) -> Endpoints + Send + Sync>;

/// What is fixed for the life of a proxy process.
#[derive(Clone)]
pub struct Options {
    /// Product version, shown as `Server: perch/VERSION` (PX-22).
    pub version: String,
    /// `None` in production: a transparent socket's own name is the original destination.
    pub rewrite_endpoints: Option<RewriteEndpoints>,
}

/// Why the proxy could not begin, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The runtime could not be built.
    #[error("could not build the proxy's runtime")]
    Runtime(#[source] std::io::Error),
    /// A descriptor that was handed over cannot be used.
    #[error("could not use the {name} socket")]
    Listener {
        /// Which one.
        name: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// Signals could not be watched.
    #[error("could not watch for signals")]
    Signals(#[source] std::io::Error),
}

/// Runs the proxy on this thread until SIGTERM or SIGINT.
///
/// The first signal ends it softly: it accepts nobody any more, closes connections without a request,
/// tells callers by `Connection: close` not to send another one, and lets what is in flight or held go
/// on for at most 4 s. What is left then is reset. A second signal ends it at once.
///
/// Builds its own current-thread runtime. Connections that come before the first server has sent its
/// snapshot wait for it (at most 60 s).
///
/// # Errors
/// When a socket cannot be used at the start; failures of single connections end only those.
pub fn run(
    listeners: Listeners,
    control: UnixListener,
    options: Options,
) -> Result<(), ProxyError> {
    server::run(listeners, control, options)
}

#[cfg(test)]
mod tests;
