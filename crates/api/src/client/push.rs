//! Pushing images: blobs first, then the manifest that names them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Method;
use http::header::{CONTENT_TYPE, LOCATION};
use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame};
use tokio::io::{AsyncRead, ReadBuf};

use super::connection::{self, Answer, Request};
use super::{Client, ClientError, Result, escape};
use crate::wire::ManifestInfo;

// As large as a pipe's buffer: fewer, larger writes gain nothing on a Unix socket.
const PIECE_BYTES: usize = 64 * 1024;

impl Client {
    /// Says whether the server has a blob already.
    pub async fn has_blob(&self, repository: &str, digest: &str) -> Result<bool> {
        let path = format!("/v2/{}/blobs/{digest}", escape(repository));
        match connection::call(&self.target, Request::new(Method::HEAD, path)).await {
            Ok(_) => Ok(true),
            Err(error) if error.status() == Some(404) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Pushes a blob of `length` bytes. The server checks the digest; nothing stays when it
    /// differs.
    pub async fn push_blob(
        &self,
        repository: &str,
        digest: &str,
        length: u64,
        content: impl AsyncRead + Send + 'static,
    ) -> Result<()> {
        let start = format!("/v2/{}/blobs/uploads/", escape(repository));
        let answer = connection::call(&self.target, Request::new(Method::POST, start)).await?;
        let location = location(&answer)?;
        let separator = if location.contains('?') { '&' } else { '?' };
        let path = format!("{location}{separator}digest={}", escape(digest));
        let body =
            ReaderBody { reader: Box::pin(content), buffer: vec![0; PIECE_BYTES] }.boxed_unsync();
        let request = Request::new(Method::PUT, path)
            .header(CONTENT_TYPE, "application/octet-stream")
            .stream(body, Some(length));
        connection::call(&self.target, request).await.map(drop)
    }

    /// Pushes a manifest under a tag or its digest; answers its digest.
    pub async fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        media_type: &str,
        bytes: Vec<u8>,
    ) -> Result<String> {
        let request = Request::new(Method::PUT, manifest_path(repository, reference))
            .header(CONTENT_TYPE, media_type)
            .bytes(bytes.into());
        let answer = connection::call(&self.target, request).await?;
        header_text(&answer, "docker-content-digest")
    }

    /// Reads a manifest by tag or digest.
    pub async fn get_manifest(&self, repository: &str, reference: &str) -> Result<ManifestInfo> {
        let request = Request::new(Method::GET, manifest_path(repository, reference));
        let answer = connection::call(&self.target, request).await?;
        let digest = header_text(&answer, "docker-content-digest")?;
        let media_type = header_text(&answer, CONTENT_TYPE.as_str())?;
        Ok(ManifestInfo { digest, media_type, bytes: answer.body.to_vec() })
    }
}

fn manifest_path(repository: &str, reference: &str) -> String {
    // A digest's colon is allowed in a path and clearer unescaped.
    format!("/v2/{}/manifests/{}", escape(repository), escape(reference).replace("%3A", ":"))
}

/// The path of an upload; an absolute URL is taken apart, for we have one server only.
fn location(answer: &Answer) -> Result<String> {
    let text = header_text(answer, LOCATION.as_str())?;
    let uri: http::Uri = text.parse().map_err(|_| bad(answer, "its Location is no URL"))?;
    let path = uri.path_and_query().ok_or_else(|| bad(answer, "its Location has no path"))?;
    Ok(path.to_string())
}

fn header_text(answer: &Answer, name: &str) -> Result<String> {
    let value = answer.headers.get(name).and_then(|value| value.to_str().ok());
    value.map(str::to_owned).ok_or_else(|| bad(answer, &format!("it has no header {name}")))
}

fn bad(answer: &Answer, reason: &str) -> ClientError {
    ClientError::BadAnswer { call: answer.call.clone(), reason: reason.to_owned() }
}

/// A reader as a request body.
struct ReaderBody {
    reader: Pin<Box<dyn AsyncRead + Send>>,
    buffer: Vec<u8>,
}

impl Body for ReaderBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        let mut buf = ReadBuf::new(&mut this.buffer);
        if let Err(error) = ready!(this.reader.as_mut().poll_read(cx, &mut buf)) {
            return Poll::Ready(Some(Err(error)));
        }
        if buf.filled().is_empty() {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::copy_from_slice(buf.filled())))))
    }
}
