//! Where the server is: a Unix socket of this host, or an address that wants a token.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::header::{AUTHORIZATION, HOST};
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Uri};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::{ClientError, Result, trust};

const SOCKET_PATH_BYTES_MAX: usize = 107;
// A host that takes longer to accept is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the server is.
#[derive(Debug, Clone)]
pub(super) enum Target {
    Socket(PathBuf),
    Remote(Arc<Remote>),
}

/// A server beyond the Unix socket. Its parts are looked at with the first call, since commands that
/// make none need neither.
pub(super) struct Remote {
    url: String,
    token: Option<String>,
    roots: Option<PathBuf>,
    // Kept: reading the system's bundle takes longer than a call.
    tls: OnceLock<Arc<ClientConfig>>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("url", &self.url).finish_non_exhaustive()
    }
}

/// A connection's bytes.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection, and the headers that its requests need.
pub(super) struct Opened {
    pub(super) stream: Box<dyn Stream>,
    pub(super) headers: HeaderMap,
}

impl Target {
    pub(super) fn remote(url: String, token: Option<String>, roots: Option<PathBuf>) -> Self {
        Self::Remote(Arc::new(Remote { url, token, roots, tls: OnceLock::new() }))
    }

    pub(super) async fn open(&self) -> Result<Opened> {
        match self {
            Self::Socket(socket) => {
                let stream = Box::new(connect_unix(socket).await?);
                let host = (HOST, HeaderValue::from_static("perch"));
                Ok(Opened { stream, headers: HeaderMap::from_iter([host]) })
            }
            Self::Remote(remote) => {
                let address = Address::parse(&remote.url)?;
                let headers = remote.headers(&address)?;
                Ok(Opened { stream: remote.connect(&address).await?, headers })
            }
        }
    }
}

impl Remote {
    fn headers(&self, address: &Address) -> Result<HeaderMap> {
        let missing = || ClientError::NoToken { url: self.url.clone() };
        let token = self.token.as_ref().ok_or_else(missing)?;
        let mut token =
            HeaderValue::from_str(&format!("Bearer {}", token.trim())).map_err(|_| missing())?;
        token.set_sensitive(true);
        Ok(HeaderMap::from_iter([(HOST, address.authority.clone()), (AUTHORIZATION, token)]))
    }

    async fn connect(&self, address: &Address) -> Result<Box<dyn Stream>> {
        let failed = |source| ClientError::Unreachable { url: self.url.clone(), source };
        let connecting = TcpStream::connect((address.host.as_str(), address.port));
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
        let stream =
            stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        if address.is_secure {
            let config = self.tls().map_err(failed)?;
            let securing = trust::secure(stream, &address.host, config);
            let secured = tokio::time::timeout(CONNECT_TIMEOUT, securing).await;
            let secured = secured.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            return Ok(Box::new(secured.map_err(failed)?));
        }
        // Nothing has been sent yet, so the token has not been seen.
        if !is_loopback(stream.peer_addr().map_err(failed)?.ip()) {
            return Err(ClientError::InTheClear { url: self.url.clone() });
        }
        Ok(Box::new(stream))
    }
}

impl Remote {
    fn tls(&self) -> io::Result<Arc<ClientConfig>> {
        if let Some(config) = self.tls.get() {
            return Ok(Arc::clone(config));
        }
        let config = trust::config(self.roots.as_deref())?;
        Ok(Arc::clone(self.tls.get_or_init(|| config)))
    }
}

/// A base address as flyctl reads it: of its path nothing remains.
#[derive(Debug)]
struct Address {
    is_secure: bool,
    host: String,
    port: u16,
    authority: HeaderValue,
}

impl Address {
    fn parse(url: &str) -> Result<Self> {
        let bad = |reason: &str| ClientError::BadAddress {
            url: url.to_owned(),
            reason: reason.to_owned(),
        };
        let uri: Uri = url.trim().parse().map_err(|_| bad("it is not a URL"))?;
        let (is_secure, port) = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => (true, 443),
            Some(scheme) if *scheme == Scheme::HTTP => (false, 80),
            _ => return Err(bad("it must begin with https:// or http://")),
        };
        let authority = uri.authority().ok_or_else(|| bad("it names no host"))?;
        if authority.as_str().contains('@') {
            let reason = "a user name is not possible; set PERCH_TOKEN".to_owned();
            // The text is not repeated: it may hold a password.
            return Err(ClientError::BadAddress { url: "…@…".to_owned(), reason });
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(port);
        let authority = HeaderValue::from_str(authority.as_str());
        let authority = authority.map_err(|_| bad("it names no host"))?;
        Ok(Self { is_secure, host, port, authority })
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

async fn connect_unix(socket: &Path) -> Result<UnixStream> {
    if SOCKET_PATH_BYTES_MAX < socket.as_os_str().len() {
        return Err(ClientError::PathTooLong { socket: socket.to_owned() });
    }
    UnixStream::connect(socket).await.map_err(|source| {
        let socket = socket.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { socket }
            }
            io::ErrorKind::PermissionDenied => ClientError::Denied { socket },
            _ => ClientError::Connect { socket, source },
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_refused(url: &str, words: &str) {
        let error = Address::parse(url).expect_err(url).to_string();
        assert!(error.contains(words) && !error.contains("s3cret"), "{url}: {error}");
    }

    #[test]
    fn an_address_that_cannot_be_used_is_refused_without_telling_secrets() {
        check_refused("", "not a URL");
        check_refused("ftp://host", "http://");
        check_refused("host:4280", "http://");
        check_refused("/run/perch/api.sock", "http://");
        check_refused("http://x:s3cret@host", "PERCH_TOKEN");
    }

    #[test]
    fn of_a_base_address_only_scheme_host_and_port_remain() {
        for (url, host, port) in [
            ("http://127.0.0.1:4280", "127.0.0.1", 4280),
            (" http://localhost/v1/", "localhost", 80),
            ("http://[::1]:7", "::1", 7),
            ("https://perch.example", "perch.example", 443),
        ] {
            let address = Address::parse(url).expect(url);
            assert_eq!((address.host.as_str(), address.port), (host, port));
        }
    }

    #[test]
    fn a_token_is_not_printed_with_its_client() {
        let target =
            Target::remote("http://127.0.0.1:1".to_owned(), Some("s3cret".to_owned()), None);
        assert!(!format!("{target:?}").contains("s3cret"));
    }

    #[tokio::test]
    async fn without_a_token_nothing_is_connected() {
        for token in [None, Some("a\nb".to_owned())] {
            let target = Target::remote("http://127.0.0.1:1".to_owned(), token, None);
            let error = target.open().await.err().expect("no token");
            assert!(matches!(error, ClientError::NoToken { .. }), "{error}");
        }
    }
}
