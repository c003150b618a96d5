//! What a fuzzer gives its bytes to: for any bytes none of these may panic.
//!
//! Each target reads its input as the proxy reads it, and holds the result against a second reader (hyper's, or a
//! plain strict one) or against itself in other pieces. `fuzz/` calls them with libFuzzer (`cargo x fuzz`), and the
//! unit tests with the committed seeds of `fuzz/seeds` and what a few thousand changes make of them. No part of the
//! product: without tests it is only there with the feature `fuzzing`.

mod chunks;
mod frames;
pub(crate) mod reference;
mod request;
mod response;
mod sockets;
mod texts;

use std::cell::RefCell;
use std::ops::Range;

use tokio::runtime::{Builder, Runtime};

use crate::Endpoints;
use crate::http::body::{Framing, Progress};
use crate::http::head::Forwarded;

/// The name of a target and what it does with its input; it panics when a promise is broken.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 9] = [
    ("request", request::compare),
    ("response", response::compare),
    ("chunked", chunks::split),
    ("http2", frames::serve),
    ("websocket", sockets::follow),
    ("dns", texts::dns),
    ("replay", texts::replay),
    ("aim", texts::aim),
    ("coding", texts::coding),
];

/// Runs one target by its name.
///
/// # Panics
/// When a promise is broken, or there is no such target.
pub fn run(name: &str, input: &[u8]) {
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, target) = found.unwrap_or_else(|| panic!("there is no target `{name}`"));
    target(input);
}

/// What an exchange with hyper runs in; nothing in it waits for anything outside.
fn within<T>(work: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: RefCell<Runtime> = RefCell::new(
            Builder::new_current_thread().build().expect("a runtime without drivers needs nothing"),
        );
    }
    RUNTIME.with_borrow(|runtime| runtime.block_on(work))
}

/// What is written for the Machine about a caller.
pub(crate) fn forwarded() -> Forwarded {
    let endpoints = Endpoints {
        caller: "[fdaa:0:1:a7b:1::2]:50000".parse().expect("an address"),
        dest: "[fdaa:0:1:0:1::2]:80".parse().expect("an address"),
    };
    Forwarded::new(endpoints, "lcl")
}

/// Follows a body that comes in these pieces: its content, and its length with the framing if it is whole.
pub(crate) fn follow<'a>(
    framing: Framing,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Option<(Vec<u8>, usize)>, ()> {
    let mut progress = Progress::new(framing);
    let (mut content, mut consumed) = (Vec::new(), 0);
    for piece in pieces {
        let take = |range: Range<usize>| content.extend_from_slice(&piece[range]);
        consumed += progress.step(piece, take).map_err(|_| ())?.consumed;
    }
    Ok(progress.is_done().then_some((content, consumed)))
}

pub(crate) fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
