//! Pushing images.

use perch_api::ClientError;

use super::Server;
use super::memory::{DISK_FULL_REPOSITORY, digest_of};

// Larger than every buffer on the way, so that an early refusal meets a sender in the middle.
const BLOB_BYTES: usize = 8 * 1024 * 1024;

fn blob() -> Vec<u8> {
    (0..BLOB_BYTES).map(|index| (index % 251) as u8).collect()
}

#[tokio::test]
async fn a_blob_is_pushed_once() {
    let server = Server::start();
    let (blob, digest) = (blob(), digest_of(&blob()));
    assert!(!server.client.has_blob("web", &digest).await.expect("head"));
    let content = std::io::Cursor::new(blob.clone());
    server.client.push_blob("web", &digest, blob.len() as u64, content).await.expect("push");
    assert!(server.client.has_blob("web", &digest).await.expect("head"));
    assert!(server.backend.state().blobs[&digest] == blob, "every byte arrived");
    assert!(server.backend.state().uploads.is_empty());
}

#[tokio::test]
async fn a_refusal_in_the_middle_of_a_push_is_understood() {
    let server = Server::start();
    let content = std::io::Cursor::new(blob());
    let push = server.client.push_blob(DISK_FULL_REPOSITORY, "len:1", BLOB_BYTES as u64, content);
    let error = push.await.expect_err("disk full");
    assert_eq!(error.status(), Some(507), "{error}");
    assert!(error.to_string().contains("no space left"), "{error}");
    assert!(server.backend.state().uploads.is_empty(), "nothing half-done stays");
}

#[tokio::test]
async fn a_wrong_digest_keeps_nothing() {
    let server = Server::start();
    let push = server.client.push_blob("web", "len:9", 3, &b"abc"[..]);
    let error = push.await.expect_err("differs");
    assert_eq!((error.status(), error.word()), (Some(400), Some("DIGEST_INVALID")));
    assert!(server.backend.state().uploads.is_empty());
}

#[tokio::test]
async fn a_source_that_fails_or_is_too_short_fails_the_push() {
    let server = Server::start();
    let push = server.client.push_blob("web", "len:9", 9, &b"abc"[..]);
    let error = push.await.expect_err("too short");
    assert!(matches!(error, ClientError::Broken { .. } | ClientError::Body { .. }), "{error:?}");
    assert!(server.backend.state().blobs.is_empty());
}

#[tokio::test]
async fn an_empty_blob_is_a_blob() {
    let server = Server::start();
    server.client.push_blob("web", "len:0", 0, tokio::io::empty()).await.expect("push");
    assert!(server.client.has_blob("web", "len:0").await.expect("head"));
}

#[tokio::test]
async fn a_manifest_comes_back_as_pushed() {
    let server = Server::start();
    let (kind, bytes) = ("application/vnd.oci.image.manifest.v1+json", b"{ }".to_vec());
    let digest =
        server.client.put_manifest("web", "deployment-1", kind, bytes.clone()).await.expect("put");
    assert_eq!(digest, "len:3");
    let manifest = server.client.get_manifest("web", "deployment-1").await.expect("get");
    assert_eq!((manifest.media_type.as_str(), manifest.bytes), (kind, bytes));
    let error = server.client.get_manifest("web", "other").await.expect_err("unknown");
    assert_eq!((error.status(), error.word()), (Some(404), Some("MANIFEST_UNKNOWN")));
    let head = server.request("HEAD /v2/web/manifests/deployment-1", "", "").await;
    assert!(
        head.starts_with("HTTP/1.1 200")
            && head.contains("content-length: 3")
            && head.ends_with("\r\n\r\n")
    );
}

#[tokio::test]
async fn a_blob_may_come_in_pieces_in_order() {
    let server = Server::start();
    let begun = server.request("POST /v2/a/b/blobs/uploads/", "", "").await;
    assert!(begun.starts_with("HTTP/1.1 202"), "{begun}");
    assert!(
        begun.contains("location: /v2/a/b/blobs/uploads/u0\r\n") && begun.contains("range: 0-0"),
        "{begun}"
    );
    let path = "/v2/a/b/blobs/uploads/u0";
    let first = server.request(&format!("PATCH {path}"), "content-range: 0-2\r\n", "abc").await;
    assert!(first.starts_with("HTTP/1.1 202") && first.contains("range: 0-2"), "{first}");
    let wrong = server.request(&format!("PATCH {path}"), "content-range: 1-3\r\n", "xyz").await;
    assert!(wrong.starts_with("HTTP/1.1 416") && wrong.contains("BLOB_UPLOAD_INVALID"), "{wrong}");
    let state = server.request(&format!("GET {path}"), "", "").await;
    assert!(state.starts_with("HTTP/1.1 204") && state.contains("range: 0-2"), "{state}");
    let last =
        server.request(&format!("PUT {path}?digest=len%3A5"), "content-range: 3-4\r\n", "de").await;
    assert!(last.starts_with("HTTP/1.1 201"), "{last}");
    assert!(last.contains("docker-content-digest: len:5"), "{last}");
    assert_eq!(server.backend.state().blobs["len:5"], b"abcde");
}

#[tokio::test]
async fn a_blob_may_come_in_one_request_or_be_here_already() {
    let server = Server::start();
    let whole = server.request("POST /v2/web/blobs/uploads/?digest=len:3", "", "abc").await;
    assert!(whole.starts_with("HTTP/1.1 201"), "{whole}");
    let mounted =
        server.request("POST /v2/other/blobs/uploads/?mount=len:3&from=web", "", "").await;
    assert!(mounted.starts_with("HTTP/1.1 201"), "{mounted}");
    let missing =
        server.request("POST /v2/other/blobs/uploads/?mount=len:4&from=web", "", "").await;
    assert!(missing.starts_with("HTTP/1.1 202"), "{missing}");
}

#[tokio::test]
async fn the_registry_speaks_its_own_errors() {
    let server = Server::start();
    let root = server.request("GET /v2/", "", "").await;
    assert!(root.starts_with("HTTP/1.1 200") && root.contains("registry/2.0"), "{root}");
    for (line, code, word) in [
        ("PATCH /v2/web/blobs/uploads/none", 404, "BLOB_UPLOAD_UNKNOWN"),
        ("DELETE /v2/web/blobs/uploads/none", 404, "BLOB_UPLOAD_UNKNOWN"),
        ("PUT /v2/web/manifests/x", 400, "MANIFEST_INVALID"),
        ("GET /v2/web/blobs/len:1", 405, "UNSUPPORTED"),
        ("GET /v2/web/nothing", 404, "NAME_INVALID"),
    ] {
        let answer = server.request(line, "", "").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{line}: {answer}");
        assert!(answer.contains(&format!(r#"{{"errors":[{{"code":"{word}""#)), "{line}: {answer}");
    }
}
