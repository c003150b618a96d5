//! What can go wrong with a call, in words that say what to do.

use std::io;
use std::path::PathBuf;

use crate::wire::ApiError;

/// What can go wrong with a call.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket is not there, or nobody listens.
    #[error("no Perch server is running at {}", socket.display())]
    NotRunning {
        /// Where we looked.
        socket: PathBuf,
    },
    /// The socket may not be opened by this user.
    #[error("you may not use the Perch server at {}", socket.display())]
    Denied {
        /// Where it is.
        socket: PathBuf,
    },
    /// The kernel takes no socket path longer than 107 bytes.
    #[error(
        "the socket path {} has {} bytes; at most 107 are possible",
        socket.display(),
        socket.as_os_str().len()
    )]
    PathTooLong {
        /// The path.
        socket: PathBuf,
    },
    /// The connection failed in another way.
    #[error("could not connect to {}", socket.display())]
    Connect {
        /// Where to.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An address that no server can have.
    #[error("{url:?} is no address of a Perch server: {reason}")]
    BadAddress {
        /// What was given.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The server's address cannot be reached.
    #[error("could not reach the Perch server at {url}")]
    Unreachable {
        /// Its address.
        url: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no token for the server's address.
    #[error("the Perch server at {url} wants a token")]
    NoToken {
        /// Its address.
        url: String,
    },
    /// The token would have been readable on the way.
    #[error("{url} is not on this host, and http:// would show the token to everybody on the way")]
    InTheClear {
        /// Its address.
        url: String,
    },
    /// The server refused.
    #[error("{0}")]
    Api(ApiError),
    /// The connection broke before the answer was complete.
    #[error("the server ended the connection during {call}")]
    Broken {
        /// Method and path.
        call: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No answer in time.
    #[error("the server did not answer {call} within {seconds} s")]
    Timeout {
        /// Method and path.
        call: String,
        /// How long we waited.
        seconds: u64,
    },
    /// An answer that is not what the contract says.
    #[error("the server's answer to {call} cannot be read: {reason}")]
    BadAnswer {
        /// Method and path.
        call: String,
        /// What is wrong.
        reason: String,
    },
    /// What we were about to send could not be read or written.
    #[error("could not prepare {call}")]
    Body {
        /// Method and path.
        call: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ClientError {
    /// The HTTP status, when the server refused.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Api(error) => Some(error.code),
            _ => None,
        }
    }

    /// The server's word for programs, such as `name_taken`.
    pub fn word(&self) -> Option<&str> {
        match self {
            Self::Api(error) => error.word.as_deref(),
            _ => None,
        }
    }

    /// What to do about it, on a line of its own.
    pub fn hint(&self) -> Option<String> {
        self.hint_text().map(str::to_owned)
    }

    fn hint_text(&self) -> Option<&'static str> {
        match self {
            Self::NotRunning { .. } => Some(
                "start it with `sudo perch server`, \
                 or set PERCH_SOCKET to the socket of the one you mean",
            ),
            Self::Denied { .. } => Some(
                "use sudo, or have an administrator add you to the group `perch` \
                 (`sudo usermod -aG perch $USER`, then log in again)",
            ),
            Self::PathTooLong { .. } => Some(
                "use a shorter --data-dir, or reach it through a symbolic link with a shorter name",
            ),
            Self::BadAnswer { .. } => {
                Some("`fly` and the server may be of different versions; compare `fly version`")
            }
            Self::Broken { .. } | Self::Timeout { .. } => Some(
                "the server's log says more (`journalctl -u perch`); \
                 what was asked may have been done",
            ),
            Self::NoToken { .. } => Some(
                "make one on the server's host with `perch token create`, and set PERCH_TOKEN, \
                 or keep it in ~/.config/perch/token (mode 0600)",
            ),
            Self::InTheClear { .. } => Some(
                "use https://; the server speaks it when its configuration has `api_certificate` and `api_key`",
            ),
            Self::Unreachable { .. } => Some(
                "`perch server --listen-api ADDR` listens there; \
                 without PERCH_API and FLY_FLAPS_BASE_URL the Unix socket of this host is used",
            ),
            Self::BadAddress { .. } | Self::Connect { .. } | Self::Api(_) | Self::Body { .. } => {
                None
            }
        }
    }
}
