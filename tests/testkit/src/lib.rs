//! What host tests and benchmarks share: a host of their own, images, and ways to ask and wait.
//!
//! A [`Host`] is a network, mount and process namespace with the `perch` binary under test inside.
//! Everything that runs in it descends from one process, so that it can be listed for leaks and
//! killed as a whole, also after a panic. Nothing here knows how Perch works inside: it calls the
//! binary, reads its output and looks at `/proc`.

mod archive;
mod blanks;
mod host;
mod http;
mod image;
mod json;
mod output;
mod packaged;
mod postgres;
mod process;
mod wait;

pub use archive::{Archive, Entry};
pub use blanks::{BLANKS_MAX, is_of_blank};
pub use host::{Entrance, Freezing, Host, Network, Shared};
pub use http::{Response, ask, exchange, get};
pub use image::{Image, hello_binary};
pub use json::{Ip, Machine};
pub use output::Output;
pub use packaged::{
    PYTHON_APP, grpc_image, node_image, postgres_image, postgres_program, python_image, redis_image,
};
pub use postgres::Postgres;
pub use process::{Process, network_namespaces};
pub use wait::{holds_for, wait_until};

/// Whether host tests can run here. `None` if they can, else the reason why not.
///
/// # Panics
/// If `E2E_REQUIRED=1` is set and they cannot: a skip is then a failure.
pub fn skip_reason() -> Option<String> {
    let reason = missing()?;
    let required = std::env::var_os("E2E_REQUIRED").is_some_and(|value| value == "1");
    assert!(!required, "E2E_REQUIRED=1 forbids to skip: {reason}");
    Some(reason)
}

fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root: namespaces, mounts and cgroups cannot be made".to_owned());
    }
    let tools = ["unshare", "nsenter", "setpriv", "ip", "nft", "busybox", "bash"];
    let absent = tools.iter().find(|tool| process::which(tool).is_none())?;
    Some(format!("the program {absent} is not installed"))
}
