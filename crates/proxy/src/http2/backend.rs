//! Connections to Machines in HTTP/2, by prior knowledge (`h2_backend`, PX-81).
//!
//! The streams of one caller's connection share one to each run; no caller shares with another, so that nobody uses up
//! another's windows and streams. Before a Machine sleeps they are given up like idle ones of HTTP/1.1: the next request
//! makes a new one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use bytes::Bytes;
use h2::client::{self, SendRequest};
use http::header::{CONNECTION, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::{self, Scheme};
use http::{HeaderName, HeaderValue, Request, Version};
use perch_core::balancer::Endpoint;
use perch_core::ids::MachineId;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::{AbortHandle, spawn_local};

use crate::http::head::{BadRequest, HEAD_BYTES_MAX, HEADERS_MAX};

/// What a Machine may send ahead on one stream.
const STREAM_WINDOW: u32 = 64 * 1024;
/// The same of all streams of a connection together.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What is kept of a request that its Machine does not take.
const SEND_BYTES_MAX: usize = 64 * 1024;
/// See the same of callers.
const SMALL_FRAMES_BUDGET: usize = 4 * 1024 * 1024;

/// A connection to one run of a Machine.
#[derive(Debug)]
pub(crate) struct Backend {
    requests: SendRequest<Bytes>,
    machine: MachineId,
    /// It takes no new requests any more.
    retired: Cell<bool>,
    task: AbortHandle,
}

impl Drop for Backend {
    /// Nobody has a stream on it any more.
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Backend {
    /// Begins HTTP/2 on a new connection. Nothing is waited for: the first request goes out with the preface.
    pub(crate) async fn begin(
        stream: TcpStream,
        machine: MachineId,
    ) -> Result<Rc<Self>, h2::Error> {
        let mut limits = client::Builder::new();
        limits
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(u32::try_from(4 * HEAD_BYTES_MAX).unwrap_or(u32::MAX))
            .max_send_buffer_size(SEND_BYTES_MAX)
            .data_frame_budget(SMALL_FRAMES_BUDGET)
            .enable_push(false);
        let (requests, connection) = limits.handshake(stream).await?;
        let task = spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a Machine's connection of HTTP/2 broke");
            }
        });
        let (retired, task) = (Cell::new(false), task.abort_handle());
        Ok(Rc::new(Self { requests, machine, retired, task }))
    }

    pub(super) fn requests(&self) -> SendRequest<Bytes> {
        self.requests.clone()
    }

    fn is_alive(&self) -> bool {
        !self.retired.get() && !self.task.is_finished()
    }

    /// It failed a request: the next one gets another.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
    }
}

/// All of one app, so that they can be given up.
#[derive(Debug, Default)]
pub(crate) struct Backends(RefCell<Vec<Weak<Backend>>>);

impl Backends {
    pub(crate) fn note(&self, backend: &Rc<Backend>) {
        let mut all = self.0.borrow_mut();
        all.retain(|known| known.strong_count() != 0);
        all.push(Rc::downgrade(backend));
    }

    /// Gives up those of these Machines: idle ones are closed, streams that are on others end by themselves.
    pub(crate) fn retire(&self, of: impl Fn(MachineId) -> bool) {
        for backend in self.0.borrow().iter().filter_map(Weak::upgrade) {
            if of(backend.machine) {
                backend.retire();
                // Only the shelf has it, and we.
                if Rc::strong_count(&backend) <= 2 {
                    backend.task.abort();
                }
            }
        }
    }
}

type Key = (MachineId, u64, u16);

/// Those of one caller.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    kept: RefCell<BTreeMap<Key, Rc<Backend>>>,
    /// Who makes one; the other streams to the same run wait for it.
    making: RefCell<BTreeMap<Key, Arc<Mutex<()>>>>,
}

impl Shelf {
    pub(crate) fn take(&self, endpoint: &Endpoint) -> Option<Rc<Backend>> {
        let mut shelf = self.kept.borrow_mut();
        shelf.retain(|_, backend| backend.is_alive());
        shelf.get(&key(endpoint)).map(Rc::clone)
    }

    /// Keeps a connection for the caller's other streams.
    pub(crate) fn keep(&self, endpoint: &Endpoint, backend: &Rc<Backend>) {
        self.kept.borrow_mut().insert(key(endpoint), Rc::clone(backend));
    }

    /// Held by the one stream that may make a connection to this run.
    pub(super) async fn turn(&self, endpoint: &Endpoint) -> OwnedMutexGuard<()> {
        let turn = {
            let mut making = self.making.borrow_mut();
            making.retain(|_, turn| 1 < Arc::strong_count(turn));
            Arc::clone(making.entry(key(endpoint)).or_default())
        };
        turn.lock_owned().await
    }
}

fn key(endpoint: &Endpoint) -> Key {
    (endpoint.machine, endpoint.run, endpoint.target.port())
}

/// A head that we wrote for a Machine, as fields of HTTP/2.
pub(super) fn request_of(head: &[u8], trailers: bool) -> Result<Request<()>, BadRequest> {
    let mut space = [httparse::EMPTY_HEADER; 2 * HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut space);
    if !parsed.parse(head).is_ok_and(|status| status.is_complete()) {
        return Err(BadRequest::Malformed);
    }
    let (Some(method), Some(path)) = (parsed.method, parsed.path) else {
        return Err(BadRequest::Malformed);
    };
    let mut request = Request::new(());
    *request.version_mut() = Version::HTTP_2;
    *request.method_mut() = method.parse().map_err(|_| BadRequest::Method)?;
    let mut parts = uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.path_and_query = Some(path.parse().map_err(|_| BadRequest::Malformed)?);
    let headers = request.headers_mut();
    headers.reserve(parsed.headers.len());
    for field in parsed.headers.iter() {
        let name =
            HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| BadRequest::Malformed)?;
        if name == HOST {
            let host = std::str::from_utf8(field.value).map_err(|_| BadRequest::Host)?;
            parts.authority = Some(host.trim().parse().map_err(|_| BadRequest::Host)?);
        } else if ![CONNECTION, TE, TRANSFER_ENCODING, UPGRADE].contains(&name) {
            let value = HeaderValue::from_bytes(field.value).map_err(|_| BadRequest::Malformed)?;
            headers.append(name, value);
        }
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    *request.uri_mut() = uri::Uri::from_parts(parts).map_err(|_| BadRequest::Malformed)?;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_of_lines_becomes_one_of_fields() {
        let head = b"POST /a.B/C?d HTTP/1.1\r\nhost: x.test:80\r\nTransfer-Encoding: chunked\r\n\
            TE: trailers\r\nConnection: TE, close\r\nX-One: 1\r\n\r\n";
        let request = request_of(head, true).expect("it is good");
        assert_eq!(request.uri(), "http://x.test:80/a.B/C?d");
        let fields: Vec<_> = request.headers().iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(fields, ["x-one", "te"]);
    }

    #[test]
    fn a_host_that_cannot_be_an_authority_is_refused() {
        let head = b"GET / HTTP/1.1\r\nHost: \r\n\r\n";
        assert_eq!(request_of(head, false).map(drop), Err(BadRequest::Host));
    }
}
