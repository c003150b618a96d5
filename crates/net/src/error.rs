//! What can go wrong, by what the caller can do about it.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

/// Why an operation on the data plane failed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The process lacks a privilege; running as root is the remedy.
    #[error("no permission to {what}")]
    NotPermitted {
        /// What was attempted, for example `create interface perch0`.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A name cannot be an interface's: 1 to 15 of `a-z`, `A-Z`, `0-9`, `.`, `-`, `_`, and neither
    /// `lo`, `host0`, `.` nor `..`.
    #[error("{name:?} cannot name an interface")]
    BadName {
        /// The name that was given.
        name: String,
    },
    /// The address is in no prefix that the plane answers for.
    #[error("address {addr} is in no network of this plane")]
    ForeignAddress {
        /// The address that was given.
        addr: IpAddr,
    },
    /// IPv4 callers are not told apart by network, so an IPv4 address is for everybody.
    #[error("address {addr} cannot be published for one network only")]
    NotForOneNetwork {
        /// The address that was given.
        addr: IpAddr,
    },
    /// A link that is not ours has the name that the config gives to ours.
    #[error("interface {name} exists and belongs to somebody else")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The host reaches a public address of this plane by somebody else's route, for example another plane's.
    #[error("the host has a route to {destination} by {link} already")]
    RouteTaken {
        /// The pool or the shared address.
        destination: String,
        /// The link that it leads to.
        link: String,
    },
    /// The kernel refused a change.
    #[error("could not {what}")]
    Kernel {
        /// What was attempted, for example `add route fdaa:1:2::/48`.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A file (a sysctl, the pin) could not be read, written or mounted.
    #[error("could not {what} {}", path.display())]
    File {
        /// The verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl NetError {
    pub(crate) fn kernel(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let (what, source) = (what.into(), source.into());
        if source.kind() == io::ErrorKind::PermissionDenied {
            return Self::NotPermitted { what, source };
        }
        Self::Kernel { what, source }
    }

    pub(crate) fn is_errno(&self, errno: i32) -> bool {
        matches!(self, Self::Kernel { source, .. } if source.raw_os_error() == Some(errno))
    }
}
