//! The image of the example app, as it is pushed to each app.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use perch_api::client::Client;
use serde_json::Value;

use crate::model::TAG;

/// Port of the example app.
pub(crate) const PORT: u16 = 8081;

/// Blobs and manifest.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    blobs: Vec<(String, Vec<u8>)>,
    media_type: String,
    manifest: Vec<u8>,
}

impl Image {
    /// Reads the image that the testkit builds.
    ///
    /// # Errors
    /// When it cannot be built.
    pub(crate) fn read() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        perch_testkit::Image::hello(PORT)?.write(&dir.path().join("image"))?;
        Self::of_layout(&dir.path().join("image"))
    }

    fn of_layout(dir: &Path) -> Result<Self> {
        let index: Value = serde_json::from_slice(&fs::read(dir.join("index.json"))?)?;
        let blob = |digest: &str| fs::read(dir.join("blobs").join(digest.replace(':', "/")));
        let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
        let listed = &index["manifests"][0];
        let manifest = blob(&text(&listed["digest"])?)?;
        let parsed: Value = serde_json::from_slice(&manifest)?;
        let layers = parsed["layers"].as_array().cloned().unwrap_or_default();
        let digests = [vec![parsed["config"].clone()], layers].concat();
        let digests = digests.iter().map(|it| text(&it["digest"])).collect::<Result<Vec<_>>>()?;
        let read = |digest: String| Ok((digest.clone(), blob(&digest)?));
        let blobs = digests.into_iter().map(read).collect::<Result<_>>()?;
        Ok(Self { blobs, media_type: text(&listed["mediaType"])?, manifest })
    }

    /// Pushes it as the app's own.
    ///
    /// # Errors
    /// When the server refuses.
    pub(crate) async fn push(&self, client: &Client, app: &str) -> Result<()> {
        for (digest, bytes) in &self.blobs {
            if !client.has_blob(app, digest).await? {
                let length = bytes.len() as u64;
                client.push_blob(app, digest, length, std::io::Cursor::new(bytes.clone())).await?;
            }
        }
        client.put_manifest(app, TAG, &self.media_type, self.manifest.clone()).await?;
        Ok(())
    }
}
