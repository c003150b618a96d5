//! Who calls: a process of this host, or the holder of a token.

use std::fmt;
use std::sync::Arc;

/// Who calls: read from the socket, or found by a token; never what the request says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A process on this host, over the Unix socket: its mode is the guard.
    Local {
        /// User id of the calling process when it connected.
        uid: u32,
        /// Its process id, where the kernel tells.
        pid: Option<i32>,
    },
    /// Somebody with a token, over TCP.
    Token(Arc<TokenHolder>),
    /// A Machine that asks about itself, over the socket that it finds inside.
    Machine(Arc<MachineCaller>),
}

/// A Machine that calls. It may ask about itself only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineCaller {
    /// Its app.
    pub app: String,
    /// Its id.
    pub id: String,
    /// As if it had a token for its app.
    scope: Scope,
}

impl MachineCaller {
    /// The Machine with this id of an app.
    pub fn new(app: &str, id: &str) -> Self {
        let scope = Scope { app: Some(app.to_owned()), ..Scope::default() };
        Self { app: app.to_owned(), id: id.to_owned(), scope }
    }
}

/// A token as far as calls need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenHolder {
    /// Names the token for good; no secret.
    pub id: String,
    /// Its name, for people.
    pub name: String,
    /// What it is good for.
    pub scope: Scope,
}

/// What a token is good for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scope {
    /// Only this organization, and what is in it.
    pub org: Option<String>,
    /// Only this app.
    pub app: Option<String>,
    /// Nothing that changes anything, or reaches into an app's network.
    pub read_only: bool,
}

impl Peer {
    /// What its token is good for; `None` for a process of this host, which may do everything.
    pub fn scope(&self) -> Option<&Scope> {
        match self {
            Self::Local { .. } => None,
            Self::Token(holder) => Some(&holder.scope),
            Self::Machine(own) => Some(&own.scope),
        }
    }

    /// Whether it may see what is of no organization and no app alone.
    pub fn sees_all(&self) -> bool {
        self.scope().is_none_or(|scope| scope.app.is_none() && scope.org.is_none())
    }

    /// The caller without what changes from one command to the next.
    pub fn user(&self) -> String {
        match self {
            Self::Local { uid, .. } => format!("uid {uid}"),
            Self::Token(holder) => format!("token {}", holder.name),
            Self::Machine(own) => format!("machine {}", own.id),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { pid: Some(pid), .. } => write!(f, "{} (pid {pid})", self.user()),
            Self::Local { pid: None, .. } | Self::Token(_) | Self::Machine(_) => {
                f.write_str(&self.user())
            }
        }
    }
}
