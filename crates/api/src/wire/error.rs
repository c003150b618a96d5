//! The error body of the Machines API, and the plain "it is done".

use std::{fmt, io};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a call was refused: an HTTP status code, a text for people, and at times a word for
/// programs.
///
/// On the wire it is `{"error": text, "status": word}`; under `/v2/` the distribution's own form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status code, 400 to 599.
    pub code: u16,
    /// What was refused and what to do, for people.
    pub error: String,
    /// A word for programs, such as `name_taken`.
    pub word: Option<String>,
}

/// Why a call was refused.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Error")]
pub(crate) struct ErrorBody {
    /// What was refused and what to do, for people.
    #[serde(default)]
    pub(crate) error: String,
    /// Fly's; it would count more than `error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    /// A word for programs, such as `name_taken`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<String>,
}

impl ApiError {
    /// Makes an error with any status code; prefer the named ones below.
    pub fn new(code: u16, error: impl Into<String>) -> Self {
        Self { code, error: error.into(), word: None }
    }

    /// Adds the word for programs.
    #[must_use]
    pub fn with_word(mut self, word: impl Into<String>) -> Self {
        self.word = Some(word.into());
        self
    }

    /// 400: the request itself is malformed.
    pub fn bad_request(error: impl Into<String>) -> Self {
        Self::new(400, error)
    }

    /// 403: known, and not allowed.
    pub fn forbidden(error: impl Into<String>) -> Self {
        Self::new(403, error)
    }

    /// 401: no token, or none that is good.
    pub fn unauthorized(error: impl Into<String>) -> Self {
        Self::new(401, error)
    }

    /// 404: no app of this name, in flyctl's words; also for who must not know of it.
    pub fn no_app(name: &str) -> Self {
        Self::not_found(format!("Could not find App \"{name}\""))
    }

    /// 404: no release with this id; also for who must not know of it.
    pub fn no_release(id: &str) -> Self {
        Self::not_found(format!("there is no release {id}"))
    }

    /// 404: no such object.
    pub fn not_found(error: impl Into<String>) -> Self {
        Self::new(404, error)
    }

    /// 408: a long poll ended without the wanted state.
    pub fn timeout(error: impl Into<String>) -> Self {
        Self::new(408, error)
    }

    /// 409: somebody else holds the lease, or changed the object meanwhile.
    pub fn conflict(error: impl Into<String>) -> Self {
        Self::new(409, error)
    }

    /// 412: the object is not in a state that allows this.
    pub fn precondition(error: impl Into<String>) -> Self {
        Self::new(412, error)
    }

    /// 413: longer than its limit.
    pub fn too_large(error: impl Into<String>) -> Self {
        Self::new(413, error)
    }

    /// 422: well formed, but its content cannot be accepted.
    pub fn invalid(error: impl Into<String>) -> Self {
        Self::new(422, error)
    }

    /// 500: our own fault; the text names what failed.
    pub fn internal(error: impl Into<String>) -> Self {
        Self::new(500, error)
    }

    /// 501: a call of Fly's that Perch does not have.
    pub fn not_implemented(error: impl Into<String>) -> Self {
        Self::new(501, error)
    }

    /// 507: the disk is full.
    pub fn disk_full(error: impl Into<String>) -> Self {
        Self::new(507, error)
    }

    /// Tells why a request's body could not be read, or kept: 400 broken off, 408 stalled, 413 too
    /// long, 507 disk full, else 500.
    pub fn from_body(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::bad_request("the request's body broke off"),
            io::ErrorKind::TimedOut => Self::timeout("the request's body stalled"),
            io::ErrorKind::FileTooLarge => Self::too_large("the request's body is too long"),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::disk_full("no space left on the server's disk; free some and try again")
            }
            _ => Self::internal(format!("the request's body could not be kept: {error}")),
        }
    }

    pub(crate) fn body(&self) -> ErrorBody {
        ErrorBody { error: self.error.clone(), message: None, status: self.word.clone() }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)
    }
}

impl std::error::Error for ApiError {}

/// The distribution's form of an error, under `/v2/`.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RegistryErrors {
    errors: [RegistryError; 1],
}

/// An error in the distribution's form.
#[derive(Debug, Serialize, JsonSchema)]
struct RegistryError {
    /// One of the distribution's words, such as `BLOB_UNKNOWN`.
    code: String,
    /// What was refused and what to do, for people.
    message: String,
    /// Always `null`.
    detail: Option<()>,
}

impl RegistryErrors {
    pub(crate) fn of(code: &str, message: &str) -> Self {
        let (code, message) = (code.to_owned(), message.to_owned());
        Self { errors: [RegistryError { code, message, detail: None }] }
    }
}

/// `{"ok": true}`: the answer of calls that have nothing else to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Done {
    /// Always `true`; a refusal is an [`ApiError`].
    pub ok: bool,
}
