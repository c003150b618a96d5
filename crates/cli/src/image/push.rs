//! Pushing an image: blobs that the server does not have, then the manifest under a tag.

use super::{Blob, Content, Image};
use crate::console::{Console, Progress};
use crate::failure::Outcome;
use perch_api::client::Client;
use std::fs::File;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};

/// An image that the server has now.
#[derive(Debug)]
pub(crate) struct Pushed {
    pub(crate) digest: String,
    /// Bytes of config and layers as they were sent or would have been.
    pub(crate) size: u64,
}

/// Pushes an image to an app's repository under a tag.
pub(crate) async fn push(
    client: &Client,
    console: &Console,
    app: &str,
    tag: &str,
    image: Image,
) -> Outcome<Pushed> {
    let size = image.blobs.iter().map(|blob| blob.size).sum();
    let done = Arc::new(AtomicU64::new(0));
    let bar =
        Progress::Bytes { label: "Pushing the image".into(), done: done.clone(), total: size };
    let _bar = console.progress(bar);
    for blob in image.blobs {
        match client.has_blob(app, &blob.digest).await? {
            true => _ = done.fetch_add(blob.size, Ordering::Relaxed),
            false => push_blob(client, app, blob, done.clone()).await?,
        }
    }
    let digest = client.put_manifest(app, tag, &image.media_type, image.manifest).await?;
    Ok(Pushed { digest, size })
}

async fn push_blob(client: &Client, app: &str, blob: Blob, done: Arc<AtomicU64>) -> Outcome {
    let Blob { digest, size, content } = blob;
    match content {
        Content::Bytes(bytes) => {
            let reader = Counted { inner: io::Cursor::new(bytes), done };
            client.push_blob(app, &digest, size, reader).await?;
        }
        Content::Part { file, offset } => {
            let reader = Counted { inner: FilePart { file, offset, left: size }, done };
            client.push_blob(app, &digest, size, reader).await?;
        }
    }
    Ok(())
}

/// A stream that says how much of it was read.
struct Counted<R> {
    inner: R,
    done: Arc<AtomicU64>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Counted<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buffer);
        let read = buffer.filled().len() - before;
        self.done.fetch_add(read as u64, Ordering::Relaxed);
        polled
    }
}

/// A part of a local file as a stream. It reads in place: while an image is pushed nothing else
/// waits on this thread.
struct FilePart {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl AsyncRead for FilePart {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let want = usize::try_from(this.left).unwrap_or(usize::MAX).min(buffer.remaining());
        let space = buffer.initialize_unfilled_to(want);
        let got = std::os::unix::fs::FileExt::read_at(&*this.file, space, this.offset);
        Poll::Ready(got.and_then(|got| {
            if got == 0 && want > 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buffer.advance(got);
            this.offset += got as u64;
            this.left -= got as u64;
            Ok(())
        }))
    }
}
