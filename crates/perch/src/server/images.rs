//! Image calls: the push under `/v2/`, and what a reference means.
//!
//! A reference in a Machine's config is `[HOST/]NAME[:TAG][@sha256:…]`. Only what was pushed to this
//! server exists; registries are not asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use perch_api::server::BodyStream;
use perch_api::wire::{ApiError, Descriptor, ImageInfo, ImageRef, ManifestInfo, UploadState};
use perch_machine::{Digest, Fault, Ids, ImageConfig, ImageError, ImageStore, Pruned, Unpacked};

use super::world::lock;

/// Host part of references that this server makes.
pub(crate) const REGISTRY: &str = "registry.perch";

/// Between two looks for uploads that nobody goes on with.
const UPLOADS_INTERVAL: Duration = Duration::from_secs(60);

/// A reference, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) registry: String,
    pub(crate) repository: String,
    pub(crate) tag: String,
    pub(crate) digest: Option<String>,
}

impl Reference {
    /// Takes a reference apart. Never fails: what is missing is empty, a missing tag is `latest`.
    pub(crate) fn parse(text: &str) -> Self {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.to_owned())),
            None => (text, None),
        };
        let slash = name.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match name[slash..].rfind(':') {
            Some(colon) => (&name[..slash + colon], name[slash + colon + 1..].to_owned()),
            None => (name, String::new()),
        };
        let host = name.split('/').next().unwrap_or_default();
        let has_host = name.contains('/') && (host.contains(['.', ':']) || host == "localhost");
        let (registry, repository) = match (has_host, name.split_once('/')) {
            (true, Some((host, rest))) => (host.to_owned(), rest.to_owned()),
            (true | false, _) => (String::new(), name.to_owned()),
        };
        let tag = if tag.is_empty() && digest.is_none() { "latest".to_owned() } else { tag };
        Self { registry, repository, tag, digest }
    }

    /// The form of a Machine's `image_ref`.
    pub(crate) fn image_ref(&self, digest: &str) -> ImageRef {
        ImageRef {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            tag: self.tag.clone(),
            digest: digest.to_owned(),
            labels: serde_json::Map::new(),
        }
    }
}

/// An image that a Machine can run: unpacked, with the program that it runs by itself.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    pub(crate) digest: String,
    pub(crate) config: ImageConfig,
    /// While a copy lives, the image is not removed. To be dropped when a record names the image.
    pub(crate) claim: Arc<str>,
}

/// The image store with the API's errors, off the async threads.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    store: Arc<ImageStore>,
    /// What is known to be unpacked, by digest: a start must not wait for somebody else's unpacking.
    unpacked: Arc<Mutex<BTreeMap<String, Unpacked>>>,
    /// Images that are about to be somebody's.
    claims: Arc<Mutex<Vec<Weak<str>>>>,
    ids: Ids,
}

impl Images {
    pub(crate) fn new(store: ImageStore, ids: Ids) -> Self {
        Self { store: Arc::new(store), unpacked: Arc::default(), claims: Arc::default(), ids }
    }

    /// How layers come to belong to a Machine's ids.
    pub(crate) fn ids(&self) -> Ids {
        self.ids
    }

    /// Layers for Machines whose ids begin at `uid_base`; blocks, unless they were made before.
    pub(crate) fn own(&self, digest: &str, uid_base: u32) -> Result<Unpacked, ImageError> {
        let unpacked = self.unpacked(digest)?;
        match self.ids {
            Ids::Mapped => Ok(unpacked),
            Ids::Shifted => self.store.shift(&unpacked, uid_base),
        }
    }

    /// Unpacked layers and config of an image; blocks, unless it was unpacked before.
    pub(crate) fn unpacked(&self, digest: &str) -> Result<Unpacked, ImageError> {
        if let Some(known) = lock(&self.unpacked).get(digest) {
            return Ok(known.clone());
        }
        let unpacked = self.store.unpack(&digest.parse()?)?;
        lock(&self.unpacked).insert(digest.to_owned(), unpacked.clone());
        Ok(unpacked)
    }

    /// Keeps an image as long as the answer lives.
    fn claim(&self, digest: &str) -> Arc<str> {
        let claim: Arc<str> = digest.into();
        let mut claims = lock(&self.claims);
        claims.retain(|claim| 0 < claim.strong_count());
        claims.push(Arc::downgrade(&claim));
        claim
    }

    /// Images that are kept because somebody is about to refer to them.
    pub(crate) fn claimed(&self) -> BTreeSet<String> {
        let claims = lock(&self.claims);
        claims.iter().filter_map(Weak::upgrade).map(|claim| claim.to_string()).collect()
    }

    /// Removes what is neither used nor was pushed or asked for since then.
    pub(crate) async fn prune(
        &self,
        used: BTreeSet<Digest>,
        unused_since: SystemTime,
    ) -> Result<Pruned, ImageError> {
        let images = self.clone();
        let pruned = tokio::task::spawn_blocking(move || {
            let pruned = images.store.prune(&used, unused_since)?;
            let mut unpacked = lock(&images.unpacked);
            pruned.manifests.iter().for_each(|gone| drop(unpacked.remove(&gone.to_string())));
            Ok(pruned)
        });
        // A thread that panicked has removed what it has; the next time does the rest.
        pruned.await.unwrap_or_else(|_| Ok(Pruned::default()))
    }

    /// Finds what `reference` means for `app`, makes layers for ids from `uid_base` on, and reads how it runs.
    pub(crate) async fn prepare(
        &self,
        app: &str,
        reference: &str,
        uid_base: u32,
    ) -> Result<Ready, ApiError> {
        let (app, reference, images) = (app.to_owned(), reference.to_owned(), self.clone());
        self.blocking(move |store| {
            let info = resolve(store, &app, &reference).map_err(unacceptable)?;
            let digest = info.digest.to_string();
            let claim = images.claim(&digest);
            let unpacked = images.own(&digest, uid_base).map_err(api_error)?;
            Ok(Ready { digest, config: unpacked.config, claim })
        })
        .await
    }

    /// Answers what a reference means, pinned to its digest.
    pub(crate) async fn resolve(&self, app: &str, reference: &str) -> Result<ImageInfo, ApiError> {
        let (app, text) = (app.to_owned(), reference.to_owned());
        self.blocking(move |store| {
            let info = resolve(store, &app, &text)?;
            let reference = Reference::parse(&text);
            let tag = if reference.tag.is_empty() {
                String::new()
            } else {
                format!(":{}", reference.tag)
            };
            Ok(ImageInfo {
                id: info.digest.to_string(),
                digest: info.digest.to_string(),
                reference: format!("{REGISTRY}/{app}{tag}@{}", info.digest),
                compressed_size: compressed_size(store, &info.digest).to_string(),
            })
        })
        .await
    }

    pub(crate) async fn head_blob(&self, digest: String) -> Result<Descriptor, ApiError> {
        self.blocking(move |store| {
            let parsed: Digest = digest.parse().map_err(api_error)?;
            let size = store.claim_blob(&parsed).map_err(api_error)?;
            let size =
                size.ok_or_else(|| ApiError::not_found(format!("blob {digest} is unknown")))?;
            Ok(Descriptor { digest, size })
        })
        .await
    }

    pub(crate) async fn start_upload(&self) -> Result<UploadState, ApiError> {
        self.blocking(|store| {
            let id = store.begin_upload().map_err(api_error)?;
            Ok(UploadState { id, received: 0 })
        })
        .await
    }

    /// Ends, until the server does, uploads that nobody goes on with.
    pub(crate) async fn end_idle_uploads(self, ended: tokio_util::sync::CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(UPLOADS_INTERVAL) => {}
                () = ended.cancelled() => return,
            }
            let done = self.blocking(|store| {
                store.end_idle_uploads();
                Ok(())
            });
            if let Err(error) = done.await {
                tracing::warn!(%error, "idle uploads may remain");
            }
        }
    }

    pub(crate) async fn get_upload(&self, id: String) -> Result<UploadState, ApiError> {
        self.blocking(move |store| {
            let received = store.upload_len(&id).map_err(api_error)?;
            Ok(UploadState { id, received })
        })
        .await
    }

    pub(crate) async fn append_upload(
        &self,
        id: String,
        mut body: BodyStream,
    ) -> Result<UploadState, ApiError> {
        loop {
            let chunk = body.next_chunk().await;
            let chunk = chunk.map_err(|error| ApiError::from_body(&error))?;
            let Some(chunk) = chunk else { return self.get_upload(id).await };
            let upload = id.clone();
            self.blocking(move |store| {
                store.append_upload(&upload, None, &chunk).map_err(api_error)
            })
            .await?;
        }
    }

    pub(crate) async fn finish_upload(
        &self,
        id: String,
        digest: String,
    ) -> Result<Descriptor, ApiError> {
        self.blocking(move |store| {
            let parsed: Digest = digest.parse().map_err(api_error)?;
            let size = store.finish_upload(&id, &parsed).map_err(api_error)?;
            Ok(Descriptor { digest, size })
        })
        .await
    }

    pub(crate) async fn cancel_upload(&self, id: String) -> Result<(), ApiError> {
        self.blocking(move |store| store.cancel_upload(&id).map_err(api_error)).await
    }

    pub(crate) async fn put_manifest(
        &self,
        app: String,
        reference: String,
        media_type: String,
        bytes: Vec<u8>,
    ) -> Result<Descriptor, ApiError> {
        self.blocking(move |store| {
            let info =
                store.put_manifest(&app, &reference, &media_type, &bytes).map_err(api_error)?;
            Ok(Descriptor { digest: info.digest.to_string(), size: info.size })
        })
        .await
    }

    pub(crate) async fn get_manifest(
        &self,
        app: String,
        reference: String,
    ) -> Result<ManifestInfo, ApiError> {
        self.blocking(move |store| {
            let info = store.resolve(&app, &reference).map_err(api_error)?;
            let bytes = store.manifest(&info.digest).map_err(api_error)?;
            Ok(ManifestInfo { digest: info.digest.to_string(), media_type: info.media_type, bytes })
        })
        .await
    }

    /// Removes the layers that were copied for one app. None of its Machines may live, and its ids must still be taken.
    pub(crate) async fn remove_own(&self, uid_base: u32) -> Result<(), ApiError> {
        self.blocking(move |store| store.remove_shifted(uid_base).map_err(api_error)).await
    }

    pub(crate) async fn remove_app(&self, app: String) -> Result<(), ApiError> {
        self.blocking(move |store| store.remove_app(&app).map_err(api_error)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ImageStore) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let store = self.store.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.unwrap_or_else(|error| Err(ApiError::internal(error.to_string())))
    }
}

fn resolve(
    store: &ImageStore,
    app: &str,
    text: &str,
) -> Result<perch_machine::images::ManifestInfo, ApiError> {
    let reference = Reference::parse(text);
    let wanted = reference.digest.as_deref().unwrap_or(&reference.tag);
    store.resolve(app, wanted).map_err(|error| match error {
        ImageError::ManifestUnknown(_) => ApiError::not_found(format!(
            "image {text} is not on this server; push it with `fly deploy --image` (docker-daemon:, oci:, \
             oci-archive: or docker-archive:); pulling from registries is not supported yet"
        )),
        other => api_error(other),
    })
}

/// Sum of the layers as pushed; 0 when the manifest cannot be read, since it is only shown.
fn compressed_size(store: &ImageStore, digest: &Digest) -> u64 {
    let bytes = store.manifest(digest).unwrap_or_default();
    let manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let layers = manifest["layers"].as_array().map(Vec::as_slice).unwrap_or_default();
    layers.iter().filter_map(|layer| layer["size"].as_u64()).sum()
}

/// The status that each failure of the image store has on the API.
pub(crate) fn api_error(error: ImageError) -> ApiError {
    let text = chain(&error);
    match error {
        ImageError::BlobUnknown(_)
        | ImageError::ManifestUnknown(_)
        | ImageError::UploadUnknown(_) => ApiError::not_found(text),
        ImageError::BadDigest(_)
        | ImageError::BadReference(_)
        | ImageError::DigestMismatch { .. } => ApiError::bad_request(text),
        ImageError::UploadOffset { .. } => ApiError::new(416, text),
        ImageError::TooLarge { .. } => ApiError::too_large(text),
        ImageError::DiskFull { .. } | ImageError::Unpack { fault: Fault::DiskFull, .. } => {
            ApiError::disk_full(text)
        }
        ImageError::BadManifest(_)
        | ImageError::WrongPlatform { .. }
        | ImageError::NoCommand
        | ImageError::Unpack { .. } => ApiError::invalid(text),
        ImageError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            ApiError::disk_full(format!("{text}; make room and repeat"))
        }
        ImageError::Io { .. } => ApiError::internal(text),
    }
}

/// What is malformed in a path is unacceptable in a body.
fn unacceptable(error: ApiError) -> ApiError {
    if error.code == 400 { ApiError { code: 422, ..error } } else { error }
}

/// An error with its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, parts: (&str, &str, &str, Option<&str>)) {
        let reference = Reference::parse(text);
        let seen = (
            reference.registry.as_str(),
            reference.repository.as_str(),
            reference.tag.as_str(),
            reference.digest.as_deref(),
        );
        assert_eq!(seen, parts, "{text}");
    }

    #[test]
    fn references_are_taken_apart_as_docker_does() {
        check("nginx", ("", "nginx", "latest", None));
        check("team/app:v1", ("", "team/app", "v1", None));
        check("localhost:5000/app", ("localhost:5000", "app", "latest", None));
        check(
            "registry.perch/app:d-1@sha256:ab",
            ("registry.perch", "app", "d-1", Some("sha256:ab")),
        );
        check("app@sha256:ab", ("", "app", "", Some("sha256:ab")));
    }
}
