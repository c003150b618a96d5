//! Pushing an image: blobs that the server does not have, then the manifest under a tag.

use super::{Blob, Content, Image};
use crate::failure::Outcome;
use perch_api::client::Client;
use std::fs::File;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
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
pub(crate) async fn push(client: &Client, app: &str, tag: &str, image: Image) -> Outcome<Pushed> {
    let size = image.blobs.iter().map(|blob| blob.size).sum();
    for blob in image.blobs {
        if !client.has_blob(app, &blob.digest).await? {
            push_blob(client, app, blob).await?;
        }
    }
    let digest = client.put_manifest(app, tag, &image.media_type, image.manifest).await?;
    Ok(Pushed { digest, size })
}

async fn push_blob(client: &Client, app: &str, blob: Blob) -> Outcome {
    let Blob { digest, size, content } = blob;
    match content {
        Content::Bytes(bytes) => {
            client.push_blob(app, &digest, size, io::Cursor::new(bytes)).await?;
        }
        Content::Part { file, offset } => {
            let reader = FilePart { file, offset, left: size };
            client.push_blob(app, &digest, size, reader).await?;
        }
    }
    Ok(())
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
