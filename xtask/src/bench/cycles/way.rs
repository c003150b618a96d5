//! How callers ask, and how what they ask sleeps.

/// How an app sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sleep {
    /// Its program ends.
    Stop,
    /// Its program is frozen.
    Suspend,
}

impl Sleep {
    /// Of the app with this number.
    pub(super) fn of(number: usize) -> Self {
        if number.is_multiple_of(2) { Self::Stop } else { Self::Suspend }
    }

    /// The word in `fly.toml`.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Suspend => "suspend",
        }
    }

    /// The state of a Machine that sleeps so.
    pub(super) fn state(self) -> &'static str {
        match self {
            Self::Stop => "stopped",
            Self::Suspend => "suspended",
        }
    }
}

/// How somebody asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// By a new connection.
    Http,
    /// By a connection that is kept over sleeps.
    KeptHttp,
    /// By prior knowledge, on a connection that is kept over sleeps.
    KeptHttp2,
    /// By a new raw connection.
    Tcp,
    /// By a raw connection that stays open while the Machine sleeps. Only under suspend: it keeps others awake.
    KeptTcp,
    /// A WebSocket with one message.
    Socket,
    /// A WebSocket that stays open while the Machine sleeps. Only under suspend.
    KeptSocket,
    /// By HTTP and raw TCP at once: both wait for the same wake.
    Two,
    /// By datagrams.
    Udp,
}

impl Way {
    /// As it is printed.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTP/1, new connection",
            Self::KeptHttp => "HTTP/1, kept connection",
            Self::KeptHttp2 => "HTTP/2, kept connection",
            Self::Tcp => "TCP, new connection",
            Self::KeptTcp => "TCP, kept connection",
            Self::Socket => "WebSocket, new",
            Self::KeptSocket => "WebSocket, kept",
            Self::Two => "HTTP/1 and TCP at once",
            Self::Udp => "UDP",
        }
    }

    /// Whether its connections are one with a run of the program, and may be ended with that before an answer.
    pub(super) fn ends_with_its_program(self) -> bool {
        matches!(self, Self::KeptTcp | Self::KeptSocket | Self::Socket)
    }
}
