//! Answers: JSON, and the two forms of an error.

use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use serde::Serialize;

use crate::wire::{ApiError, Done, RegistryErrors};

pub(super) type Answer = Response<Full<Bytes>>;
/// What a handler makes.
pub(super) type Outcome = Result<Answer, ApiError>;

const REQUEST_ID: HeaderName = HeaderName::from_static("fly-request-id");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

pub(super) fn json(value: &impl Serialize) -> Outcome {
    json_with(StatusCode::OK, value)
}

pub(super) fn json_with(status: StatusCode, value: &impl Serialize) -> Outcome {
    let bytes = serde_json::to_vec(value)
        .map_err(|error| ApiError::internal(format!("the answer could not be written: {error}")))?;
    let mut answer = json_text(bytes.into());
    *answer.status_mut() = status;
    Ok(answer)
}

/// An answer of what is JSON already.
pub(super) fn json_text(text: Bytes) -> Answer {
    let mut answer = empty(StatusCode::OK);
    answer.headers_mut().insert(CONTENT_TYPE, JSON);
    *answer.body_mut() = Full::new(text);
    answer
}

/// An answer of text.
pub(super) fn text(media_type: &'static str, text: String) -> Answer {
    let mut answer = empty(StatusCode::OK);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    *answer.body_mut() = Full::new(text.into());
    answer
}

pub(super) fn done() -> Outcome {
    json(&Done { ok: true })
}

pub(super) fn empty(status: StatusCode) -> Answer {
    let mut answer = Answer::default();
    *answer.status_mut() = status;
    answer
}

/// The Machines API's form.
pub(super) fn refusal(error: &ApiError) -> Answer {
    with_error(error, &error.body())
}

/// For a caller without a good token: nothing more is read from it. The challenge is what `docker
/// push` needs to send its password.
pub(super) fn stranger(error: &ApiError) -> Answer {
    let mut answer = refusal(error);
    if error.code == 401 {
        let challenge = HeaderValue::from_static("Basic realm=\"perch\"");
        answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// The distribution's form. `unknown` is its word for 404 here.
pub(super) fn registry_refusal(error: &ApiError, unknown: &str) -> Answer {
    let word = match (&error.word, error.code) {
        (Some(word), _) => word,
        (None, 404) => unknown,
        (None, 400 | 422) => "DIGEST_INVALID",
        (None, 401) => "UNAUTHORIZED",
        (None, 403) => "DENIED",
        (None, 413) => "SIZE_INVALID",
        (None, 405 | 501) => "UNSUPPORTED",
        (None, _) => "UNKNOWN",
    };
    with_error(error, &RegistryErrors::of(word, &error.error))
}

/// flyctl shows it with an error.
pub(super) fn with_request_id(mut answer: Answer, id: &str) -> Answer {
    if let Ok(value) = HeaderValue::from_str(id) {
        answer.headers_mut().insert(REQUEST_ID, value);
    }
    answer
}

pub(super) fn with_allow(mut answer: Answer, methods: &str) -> Answer {
    if let Ok(value) = HeaderValue::from_str(methods) {
        answer.headers_mut().insert(ALLOW, value);
    }
    answer
}

fn with_error(error: &ApiError, body: &impl Serialize) -> Answer {
    let status = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json_with(status, body).unwrap_or_else(|_| empty(status))
}
