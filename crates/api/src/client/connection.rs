//! One request, one connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, UPGRADE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::target::{Opened, Target};
use super::{ANSWER_TIMEOUT, ClientError, Result};
use crate::wire::{ApiError, ErrorBody, NONCE_HEADER};

// The longest answers are lists of Machines and pages of logs; a whole installation fits.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

pub(super) type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// A request about to be sent.
pub(super) struct Request {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: RequestBody,
    timeout: Option<Duration>,
}

/// A complete answer with a good status.
pub(super) struct Answer {
    pub(super) call: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Request {
    pub(super) fn new(method: Method, path: String) -> Self {
        let body = full(Bytes::new());
        Self { method, path, headers: HeaderMap::new(), body, timeout: Some(ANSWER_TIMEOUT) }
    }

    pub(super) fn nonce(self, nonce: Option<&str>) -> Self {
        match nonce {
            Some(nonce) => self.header(NONCE_HEADER, nonce),
            None => self,
        }
    }

    /// Adds a header; a value that no header can carry is left out, and the server says what it
    /// misses.
    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    pub(super) fn json(self, body: &impl Serialize) -> Result<Self> {
        let bytes = serde_json::to_vec(body)
            .map_err(|error| ClientError::Body { call: self.call(), source: error.into() })?;
        Ok(self.header(CONTENT_TYPE, "application/json").bytes(bytes.into()))
    }

    pub(super) fn bytes(mut self, bytes: Bytes) -> Self {
        self.body = full(bytes);
        self
    }

    /// A body of unknown or given length; the whole call then has no time limit of its own.
    pub(super) fn stream(mut self, body: RequestBody, length: Option<u64>) -> Self {
        self.body = body;
        self.timeout = None;
        match length {
            Some(length) => self.header(CONTENT_LENGTH, &length.to_string()),
            None => self,
        }
    }

    pub(super) fn extra_time(mut self, extra: Duration) -> Self {
        self.timeout = self.timeout.map(|timeout| timeout + extra);
        self
    }

    fn call(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

impl Answer {
    /// Reads the body; an empty one reads as `null`.
    pub(super) fn json<T: DeserializeOwned>(self) -> Result<T> {
        let bytes: &[u8] = if self.body.is_empty() { b"null" } else { &self.body };
        serde_json::from_slice(bytes)
            .map_err(|error| ClientError::BadAnswer { call: self.call, reason: error.to_string() })
    }
}

fn full(bytes: Bytes) -> RequestBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// Sends a request and reads the whole answer.
pub(super) async fn call(target: &Target, request: Request) -> Result<Answer> {
    let (call, timeout) = (request.call(), request.timeout);
    let work = async {
        let response = send(target, request).await?;
        read(&call, response).await
    };
    let Some(timeout) = timeout else { return work.await };
    match tokio::time::timeout(timeout, work).await {
        Ok(answer) => answer,
        Err(_) => Err(ClientError::Timeout { call, seconds: timeout.as_secs() }),
    }
}

/// Sends a request that turns its connection into a raw stream.
pub(super) async fn upgrade(target: &Target, request: Request) -> Result<ProxyStream> {
    let call = request.call();
    let request =
        request.header(CONNECTION, "upgrade").header(UPGRADE, "tcp").extra_time(Duration::ZERO);
    let response = send(target, request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let answer = read(&call, response).await?;
        let reason = format!("expected a switch of protocols, got {} bytes", answer.body.len());
        return Err(ClientError::BadAnswer { call, reason });
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(|error| broken(&call, error))?;
    Ok(ProxyStream(TokioIo::new(upgraded)))
}

async fn send(target: &Target, request: Request) -> Result<http::Response<Incoming>> {
    let call = request.call();
    let Opened { stream, headers } = target.open().await?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&call, error))?;
    // The task ends with the connection: `sender` and the answer's body keep it, nothing else does.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to the server ended");
        }
    });
    let http_request = into_http(&call, request, headers)?;
    sender.send_request(http_request).await.map_err(|error| broken(&call, error))
}

fn into_http(call: &str, request: Request, own: HeaderMap) -> Result<http::Request<RequestBody>> {
    let mut http_request = http::Request::builder()
        .method(request.method)
        .uri(&request.path)
        .body(request.body)
        .map_err(|error| ClientError::Body {
            call: call.to_owned(),
            source: io::Error::other(error),
        })?;
    *http_request.headers_mut() = request.headers;
    let headers = http_request.headers_mut();
    headers.extend(own);
    headers.insert(
        USER_AGENT,
        HeaderValue::from_static(concat!("perch-fly/", env!("CARGO_PKG_VERSION"))),
    );
    Ok(http_request)
}

/// Reads the whole answer; a bad status becomes the error that its body tells.
async fn read(call: &str, response: http::Response<Incoming>) -> Result<Answer> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| {
        ClientError::Broken { call: call.to_owned(), source: io::Error::other(error) }
    })?;
    let body = body.to_bytes();
    if !head.status.is_success() {
        return Err(ClientError::Api(refusal(head.status, &body)));
    }
    Ok(Answer { call: call.to_owned(), headers: head.headers, body })
}

/// Reads either form of an error body; else shows the body as flyctl does.
fn refusal(status: StatusCode, body: &[u8]) -> ApiError {
    #[derive(serde::Deserialize)]
    struct Distribution {
        errors: Vec<DistributionError>,
    }
    #[derive(serde::Deserialize)]
    struct DistributionError {
        code: String,
        message: String,
    }
    let code = status.as_u16();
    if let Ok(Distribution { errors }) = serde_json::from_slice(body)
        && let Some(first) = errors.into_iter().next()
    {
        return ApiError::new(code, first.message).with_word(first.code);
    }
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(ErrorBody { error, message, status }) if !error.is_empty() || message.is_some() => {
            ApiError { code, error: message.unwrap_or(error), word: status }
        }
        _ if body.is_empty() => ApiError::new(code, format!("the server answered {status}")),
        _ => {
            let text = String::from_utf8_lossy(body);
            ApiError::new(code, format!("request returned non-2xx status: {code}: {text}"))
        }
    }
}

fn broken(call: &str, error: hyper::Error) -> ClientError {
    ClientError::Broken { call: call.to_owned(), source: io::Error::other(error) }
}

/// A raw stream to an address inside an app's network.
#[derive(Debug)]
pub struct ProxyStream(TokioIo<Upgraded>);

impl AsyncRead for ProxyStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for ProxyStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
