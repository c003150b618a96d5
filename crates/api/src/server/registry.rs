//! The OCI distribution calls that a push needs: blobs in one or many pieces, then the manifest.

use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::Full;

use super::answer::{Answer, Outcome, empty, json};
use super::handler::{Call, misrouted};
use super::route::Route;
use super::{Backend, BodyStream, Peer};
use crate::wire::{ApiError, Descriptor, UploadState};

const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
// The distribution's recommendation.
const MANIFEST_BYTES_MAX: u64 = 4 * 1024 * 1024;

pub(super) async fn answer<B: Backend>(call: Call<B>, route: Route) -> Outcome {
    match route {
        Route::Registry => {
            with_headers(json(&serde_json::json!({}))?, [(API_VERSION, "registry/2.0".to_owned())])
        }
        Route::Blob(repository, digest) => {
            let blob = call.backend().head_blob(call.peer.clone(), repository, digest).await?;
            let length = blob.size.to_string();
            with_headers(empty(StatusCode::OK), [(DIGEST, blob.digest), (CONTENT_LENGTH, length)])
        }
        Route::Uploads(repository) => begin(call, repository).await,
        Route::Upload(repository, id) => upload(call, repository, id).await,
        Route::Manifest(repository, reference) if call.head.method == Method::PUT => {
            put_manifest(call, repository, reference).await
        }
        Route::Manifest(repository, reference) => get_manifest(call, repository, reference).await,
        _ => misrouted(),
    }
}

/// `POST …/uploads/`: begins, or takes the whole blob, or finds that it is here already.
async fn begin<B: Backend>(call: Call<B>, repository: String) -> Outcome {
    let (peer, query) = (call.peer.clone(), call.query()?);
    if let Some(mount) = query.owned("mount") {
        match call.backend().head_blob(peer.clone(), repository.clone(), mount).await {
            Ok(blob) => return created(&repository, "blobs", blob),
            Err(error) if error.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    let state = call.backend().start_upload(peer, repository.clone()).await?;
    match query.owned("digest") {
        Some(digest) => finish(call, repository, state.id, digest).await,
        None => accepted(&repository, &state),
    }
}

async fn upload<B: Backend>(call: Call<B>, repository: String, id: String) -> Outcome {
    let peer = call.peer.clone();
    match call.head.method {
        Method::PATCH => {
            check_range(&call, &repository, &id).await?;
            let Call { session, body, .. } = call;
            let state = session.backend.append_upload(peer, repository.clone(), id, body).await?;
            accepted(&repository, &state)
        }
        Method::PUT => {
            let digest = call.query()?.required("digest")?;
            check_range(&call, &repository, &id).await?;
            finish(call, repository, id, digest).await
        }
        Method::DELETE => {
            call.backend().cancel_upload(peer, repository, id).await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        _ => {
            let state = call.backend().get_upload(peer, repository.clone(), id).await?;
            let mut answer = accepted(&repository, &state)?;
            *answer.status_mut() = StatusCode::NO_CONTENT;
            Ok(answer)
        }
    }
}

/// A piece must begin where the last one ended, if it says where it begins.
async fn check_range<B: Backend>(
    call: &Call<B>,
    repository: &str,
    id: &str,
) -> Result<(), ApiError> {
    let Some(range) = call.header(CONTENT_RANGE.as_str()) else { return Ok(()) };
    let text = range.strip_prefix("bytes ").unwrap_or(range);
    let start: Option<u64> = text.split('-').next().and_then(|start| start.trim().parse().ok());
    let state =
        call.backend().get_upload(call.peer.clone(), repository.to_owned(), id.to_owned()).await?;
    if start == Some(state.received) {
        return Ok(());
    }
    let text = format!("the piece {range} does not begin at {}", state.received);
    Err(ApiError::new(416, text).with_word("BLOB_UPLOAD_INVALID"))
}

/// Takes the rest of a blob and checks it. What fails here is dropped: a client that goes on begins
/// anew.
async fn finish<B: Backend>(
    call: Call<B>,
    repository: String,
    id: String,
    digest: String,
) -> Outcome {
    let Call { session, body, peer, .. } = call;
    let backend = session.backend.as_ref();
    match take(backend, peer.clone(), (&repository, &id), digest, body).await {
        Ok(blob) => created(&repository, "blobs", blob),
        Err(error) => {
            if let Err(second) = backend.cancel_upload(peer, repository, id).await
                && second.code != 404
            {
                tracing::warn!(error = second.error, "could not drop a failed upload");
            }
            Err(error)
        }
    }
}

async fn take<B: Backend>(
    backend: &B,
    peer: Peer,
    (repository, id): (&str, &str),
    digest: String,
    body: BodyStream,
) -> Result<Descriptor, ApiError> {
    if !body.is_empty() {
        backend.append_upload(peer.clone(), repository.to_owned(), id.to_owned(), body).await?;
    }
    backend.finish_upload(peer, repository.to_owned(), id.to_owned(), digest).await
}

async fn put_manifest<B: Backend>(
    mut call: Call<B>,
    repository: String,
    reference: String,
) -> Outcome {
    let media_type = call.header(CONTENT_TYPE.as_str()).unwrap_or_default().to_owned();
    if media_type.is_empty() {
        let text = "a manifest needs its media type as Content-Type";
        return Err(ApiError::bad_request(text).with_word("MANIFEST_INVALID"));
    }
    let bytes = call.body.read_all(MANIFEST_BYTES_MAX).await?;
    let (peer, backend) = (call.peer.clone(), call.backend());
    let manifest =
        backend.put_manifest(peer, repository.clone(), reference, media_type, bytes).await?;
    created(&repository, "manifests", manifest)
}

async fn get_manifest<B: Backend>(call: Call<B>, repository: String, reference: String) -> Outcome {
    let manifest = call.backend().get_manifest(call.peer.clone(), repository, reference).await?;
    let mut answer = empty(StatusCode::OK);
    let length = manifest.bytes.len().to_string();
    *answer.body_mut() = Full::new(manifest.bytes.into());
    let headers =
        [(DIGEST, manifest.digest), (CONTENT_TYPE, manifest.media_type), (CONTENT_LENGTH, length)];
    with_headers(answer, headers)
}

fn created(repository: &str, kind: &str, what: Descriptor) -> Outcome {
    let location = format!("/v2/{repository}/{kind}/{}", what.digest);
    with_headers(empty(StatusCode::CREATED), [(LOCATION, location), (DIGEST, what.digest)])
}

fn accepted(repository: &str, state: &UploadState) -> Outcome {
    let location = format!("/v2/{repository}/blobs/uploads/{}", state.id);
    let range = format!("0-{}", state.received.saturating_sub(1));
    let headers = [(LOCATION, location), (RANGE, range), (UPLOAD_ID, state.id.clone())];
    with_headers(empty(StatusCode::ACCEPTED), headers)
}

fn with_headers<const N: usize>(mut answer: Answer, headers: [(HeaderName, String); N]) -> Outcome {
    for (name, value) in headers {
        let value = HeaderValue::from_str(&value)
            .map_err(|_| ApiError::internal(format!("{value:?} cannot be sent as {name}")))?;
        answer.headers_mut().insert(name, value);
    }
    Ok(answer)
}
